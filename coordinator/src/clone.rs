//! A VM as it was at an earlier epoch, beside the one that runs: to look inside. It reads the disks of that epoch and writes to files of
//! its own, and it reaches no network. Knows nothing of epochs beyond the names of the exports.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nbd_server::control::client::{Client, ControlError};
use nbd_server::group::history::Point;
use qemu_glue::{RuntimePlace, SourceVm, VmEvent};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;

use crate::config::ProtectConfig;
use crate::disks::{self, DisksError};
use crate::saved_state;

/// What is cloned.
#[derive(Debug, Clone)]
pub struct CloneOf {
    /// The VM as its source is configured.
    pub config: ProtectConfig,
    /// Name of the clone, as the name of a VM.
    pub name: String,
    /// Its disks at this point.
    pub disks: Point,
    /// Its memory and devices.
    pub saved_state: PathBuf,
}

/// Why there is no clone.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// The gateway.
    #[error("the gateway does not know this VM's disks")]
    Gateway(#[source] ControlError),
    /// The disks of the configuration are not those of the group.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// QEMU did not start.
    #[error("the clone could not be started")]
    Vm(#[source] qemu_glue::Error),
}

/// Runs a clone until it ends or `stop` asks for that. `started` is told the process id of its QEMU once the guest runs.
///
/// # Errors
/// [`CloneError`].
pub async fn run_clone(
    of: &CloneOf,
    started: impl FnOnce(u32),
    stop: &mut watch::Receiver<u32>,
) -> Result<(), CloneError> {
    let CloneOf { config, name, .. } = of;
    let client = Client::connect(&config.gateway)
        .await
        .map_err(CloneError::Gateway)?;
    let group = client.group(&config.vm.name).await;
    let group = group.map_err(CloneError::Gateway)?;
    let exports: BTreeMap<String, String> = group
        .disks
        .into_iter()
        .map(|disk| {
            let export = format!("{}/{}@{}", group.name, disk.name, of.disks);
            (disk.name, export)
        })
        .collect();
    let mut attachments = disks::attachments(&config.nbd, &config.disks, &exports)?;
    for disk in &mut attachments {
        disk.overlay = true;
    }
    let mut description = config.vm.clone();
    description.name.clone_from(name);
    let place = RuntimePlace::clone_of(config.runtime_dir.join(name)).on(&config.host);
    let vm = saved_state::restore(&description, &place, &attachments, &of.saved_state);
    let vm = vm.await.map_err(CloneError::Vm)?;
    started(vm.pid());
    until_its_end(&vm, stop).await;
    vm.kill().await;
    Ok(())
}

async fn until_its_end(vm: &SourceVm, stop: &mut watch::Receiver<u32>) {
    let mut events = vm.subscribe();
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Ok(VmEvent::Shutdown { .. } | VmEvent::Closed) | Err(RecvError::Closed) => return,
                _ => {}
            },
            _ = stop.changed() => return,
        }
    }
}
