//! The caller's side of the control API for the past of groups.

use bytes::Bytes;
use epoch_log::history::{Frozen, Pin};
use hyper::Method;

use super::exports::segment;
use super::{Client, ControlError, Repeat};
use crate::control::api::{FreezeRequest, HistoryReply, PinRequest, RewindRequest, ThawReply};
use crate::group::history::{Point, Rewound};

impl Client {
    /// The points that a group keeps, oldest first, from `since` on, at most `limit`.
    pub async fn history(
        &self,
        group: &str,
        since: Option<&Point>,
        limit: Option<usize>,
    ) -> Result<HistoryReply, ControlError> {
        let since = since.map(|point| format!("since={}", segment(&point.to_string())));
        let limit = limit.map(|number| format!("limit={number}"));
        let query: Vec<String> = since.into_iter().chain(limit).collect();
        let target = format!("/v1/groups/{}/history?{}", segment(group), query.join("&"));
        self.call(Method::GET, &target, Bytes::new(), Repeat::Safe)
            .await
    }

    /// Gives a point a name, so that it is never trimmed: the newest committed one unless `at` says which.
    pub async fn pin(
        &self,
        group: &str,
        name: &str,
        at: Option<&Point>,
    ) -> Result<Pin, ControlError> {
        let body = PinRequest {
            name: name.to_owned(),
            at: at.cloned(),
        };
        self.post(group, "pins", &body, Repeat::Never).await
    }

    /// Takes a name away.
    pub async fn unpin(&self, group: &str, name: &str) -> Result<Pin, ControlError> {
        let target = format!("/v1/groups/{}/pins/{}", segment(group), segment(name));
        self.call(Method::DELETE, &target, Bytes::new(), Repeat::Never)
            .await
    }

    /// Keeps all that a group's history has, whatever its age and size: for so many milliseconds, or until it is thawed.
    pub async fn freeze(&self, group: &str, for_ms: Option<u64>) -> Result<Frozen, ControlError> {
        self.post(group, "freeze", &FreezeRequest { for_ms }, Repeat::Never)
            .await
    }

    /// Ends that.
    pub async fn thaw(&self, group: &str) -> Result<ThawReply, ControlError> {
        let target = format!("/v1/groups/{}/freeze", segment(group));
        self.call(Method::DELETE, &target, Bytes::new(), Repeat::Never)
            .await
    }

    /// Sets a group back to a point of its past. With clients, an owner or a standby it is refused unless `force`: then they are sent away,
    /// and a VM that runs on it is fenced.
    pub async fn rewind(
        &self,
        group: &str,
        to: &Point,
        force: bool,
    ) -> Result<Rewound, ControlError> {
        let body = RewindRequest {
            to: to.clone(),
            force,
        };
        self.post(group, "rewind", &body, Repeat::Never).await
    }
}
