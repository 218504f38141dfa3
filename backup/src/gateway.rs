//! The gateway that a backup is made of: its control API, called from a thread.

use std::path::Path;

use nbd_server::control::api::{GatewayStatus, Pin, Point};
use nbd_server::control::client::{Client, ControlError};
use tokio::runtime::Runtime;

use crate::BackupError;

#[derive(Debug)]
pub(crate) struct Gateway {
    runtime: Runtime,
    client: Client,
}

impl Gateway {
    pub fn connect(control: &Path) -> Result<Self, BackupError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let client = runtime.block_on(Client::connect(control))?;
        Ok(Self { runtime, client })
    }

    pub fn status(&self) -> Result<GatewayStatus, ControlError> {
        self.runtime.block_on(self.client.status())
    }

    /// The pins of a group; none if it keeps no history.
    pub fn pins(&self, group: &str) -> Result<Option<Vec<Pin>>, ControlError> {
        let status = self.runtime.block_on(self.client.group(group))?;
        Ok(status.history.map(|history| history.pins))
    }

    pub fn pin(&self, group: &str, name: &str, at: Option<&Point>) -> Result<Pin, ControlError> {
        self.runtime.block_on(self.client.pin(group, name, at))
    }

    pub fn unpin(&self, group: &str, name: &str) -> Result<Pin, ControlError> {
        self.runtime.block_on(self.client.unpin(group, name))
    }
}
