//! The caller's side of the control API for clones of a group.

use bytes::Bytes;
use hyper::Method;

use super::exports::segment;
use super::{Client, ControlError, Repeat};
use crate::control::api::{CloneRequest, CloneStatus, RemovedReply};

impl Client {
    /// The clones of a group, by name.
    pub async fn clones(&self, group: &str) -> Result<Vec<CloneStatus>, ControlError> {
        let target = format!("/v1/groups/{}/clones", segment(group));
        self.call(Method::GET, &target, Bytes::new(), Repeat::Safe)
            .await
    }

    /// Makes a clone of all disks of a group. It stays until it is removed. The paths are the gateway's: give them in full.
    pub async fn add_clone(
        &self,
        group: &str,
        clone: &CloneRequest,
    ) -> Result<CloneStatus, ControlError> {
        self.post(&segment(group), "clones", clone, Repeat::Never)
            .await
    }

    /// Removes a clone and all that was written to it. With clients attached it is refused unless `force`: then what they have asked is
    /// answered, and they are cut.
    pub async fn remove_clone(
        &self,
        group: &str,
        name: &str,
        force: bool,
    ) -> Result<(), ControlError> {
        let (group, name) = (segment(group), segment(name));
        let target = format!("/v1/groups/{group}/clones/{name}?force={force}");
        self.call(Method::DELETE, &target, Bytes::new(), Repeat::Never)
            .await
            .map(|_: RemovedReply| ())
    }
}
