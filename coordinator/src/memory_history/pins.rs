//! Pins at the gateway: they keep the disks of each memory point. Knows the control API and nothing of memory.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nbd_server::Epoch;
use nbd_server::control::api::Point;
use nbd_server::control::client::{Client, ControlError};
use tokio::runtime::Runtime;

/// The group whose disks are kept, from a thread that may block.
#[derive(Debug)]
pub(super) struct Pins {
    gateway: PathBuf,
    group: String,
    /// Of its own: the one of the standby may be about to end, and would be waited for.
    runtime: Runtime,
}

/// What all pins of the memory points with this id begin with.
fn prefix(id: u32) -> String {
    format!("memory-{id:08x}-")
}

/// The name of the pin of one epoch. The id is that of the store: two standbys of one VM keep points of their own.
pub(super) fn name(id: u32, epoch: Epoch) -> String {
    format!("{}{epoch}", prefix(id))
}

impl Pins {
    /// Pins in `group` of the gateway with this control socket.
    pub(super) fn new(gateway: PathBuf, group: String) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            gateway,
            group,
            runtime,
        })
    }

    /// Keeps the disks of an epoch. Waits until the images have it.
    pub(super) fn pin(&self, name: &str, epoch: Epoch) -> Result<(), ControlError> {
        self.ask(async |client| {
            let at = Point::Epoch(epoch);
            client.pin(&self.group, name, Some(&at)).await.map(drop)
        })
    }

    /// Gives up the disks of all epochs that the store with this id pinned, but for those that are `wanted`.
    pub(super) fn only(&self, id: u32, wanted: &BTreeSet<String>) -> Result<(), ControlError> {
        let prefix = prefix(id);
        self.ask(async |client| {
            let group = client.group(&self.group).await?;
            let pins = group.history.map(|history| history.pins);
            let names = pins.into_iter().flatten().map(|pin| pin.name);
            for name in names.filter(|name| name.starts_with(&prefix) && !wanted.contains(name)) {
                client.unpin(&self.group, &name).await?;
            }
            Ok(())
        })
    }

    fn ask<T>(
        &self,
        request: impl AsyncFnOnce(Client) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        self.runtime
            .block_on(async { request(Client::connect(&self.gateway).await?).await })
    }
}
