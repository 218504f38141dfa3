//! The caller's side of the control API for exports outside of groups.

use bytes::Bytes;
use hyper::Method;

use super::{Client, ControlError, Repeat};
use crate::control::api::{ExportConfig, ExportStatus, RemovedReply, ResizeRequest};

impl Client {
    /// What is exported outside of groups.
    pub async fn exports(&self) -> Result<Vec<ExportStatus>, ControlError> {
        self.call(Method::GET, "/v1/exports", Bytes::new(), Repeat::Safe)
            .await
    }

    /// Serves one more image until the gateway ends. Its path is the gateway's: give it in full.
    pub async fn add_export(&self, export: &ExportConfig) -> Result<ExportStatus, ControlError> {
        let body = serde_json::to_vec(export).map_err(|e| self.malformed(e))?;
        self.call(Method::POST, "/v1/exports", body.into(), Repeat::Never)
            .await
    }

    /// Serves an image no longer. With clients attached it is refused unless `force`: then what they have asked is answered, and they are
    /// cut.
    pub async fn remove_export(&self, name: &str, force: bool) -> Result<(), ControlError> {
        let target = format!("/v1/exports/{}?force={force}", segment(name));
        self.call(Method::DELETE, &target, Bytes::new(), Repeat::Never)
            .await
            .map(|_: RemovedReply| ())
    }

    /// Gives an export outside of groups another size in bytes; less than it has only if `shrink`. Clients that are attached
    /// keep the size that they were told.
    pub async fn resize_export(
        &self,
        name: &str,
        size: u64,
        shrink: bool,
    ) -> Result<ExportStatus, ControlError> {
        let body = serde_json::to_vec(&ResizeRequest { size, shrink });
        let body = body.map_err(|e| self.malformed(e))?;
        let target = format!("/v1/exports/{}", segment(name));
        self.call(Method::PATCH, &target, body.into(), Repeat::Safe)
            .await
    }
}

/// A name as one segment of a path: whatever is typed reaches the gateway, which then says what is wrong with it.
pub(super) fn segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}
