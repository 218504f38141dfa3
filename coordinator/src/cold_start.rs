//! What is asked before a VM is started from its disks. Attaching fences whoever has the disks and voids the memory that
//! a standby holds, so everything that can be wrong is found out first.

use nbd_server::control::api::{AttachmentKind, GroupStatus};
use nbd_server::control::client::{Client, ControlError};
use qemu_glue::VmDescription;

use crate::config::ProtectConfig;
use crate::disks::{self, DisksError};

/// Why a VM is not started.
#[derive(Debug, thiserror::Error)]
pub enum NotStarted {
    /// The gateway did not say how the group stands.
    #[error("the gateway does not know this VM's disks")]
    Gateway(#[source] ControlError),
    /// The disks of the configuration are not those of the group.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// There is no such QEMU.
    #[error("can't find the program `{0}`: is QEMU installed and is the `qemu` key right?")]
    NoQemu(String),
    /// Somebody else has the disks open.
    #[error(
        "the VM runs already: {owner} has its disks open; stop it there first, or fence it and start from the disks with --cold-start"
    )]
    Running {
        /// Who.
        owner: String,
    },
    /// A standby holds the memory of the last epoch.
    #[error(
        "{standby} holds the memory of epoch {epoch} and may be about to go on from it; let it, or give that memory up and start from the disks with --cold-start"
    )]
    Held {
        /// The standby.
        standby: String,
        /// The last committed epoch.
        epoch: nbd_server::Epoch,
    },
}

/// Finds out whether the VM can and may be started here. Changes nothing.
pub(crate) async fn check(client: &Client, config: &ProtectConfig) -> Result<(), NotStarted> {
    if !program_exists(&config.vm) {
        return Err(NotStarted::NoQemu(config.vm.qemu.display().to_string()));
    }
    let group = client.group(&config.vm.name).await;
    let group = group.map_err(NotStarted::Gateway)?;
    let names = group
        .disks
        .iter()
        .map(|disk| (disk.name.clone(), disk.name.clone()));
    disks::attachments(&config.nbd, &config.disks, &names.collect())?;
    if config.cold_start {
        return Ok(());
    }
    nobody_else_has_it(&group)
}

fn nobody_else_has_it(group: &GroupStatus) -> Result<(), NotStarted> {
    let active = group
        .attachments
        .iter()
        .find(|a| a.kind == AttachmentKind::Source && a.connections > 0);
    if let Some(active) = active {
        return Err(NotStarted::Running {
            owner: active.name.clone(),
        });
    }
    match &group.holder {
        Some(standby) => Err(NotStarted::Held {
            standby: standby.clone(),
            epoch: group.committed,
        }),
        None => Ok(()),
    }
}

/// Looks where the system would look.
fn program_exists(vm: &VmDescription) -> bool {
    if vm.qemu.components().count() > 1 {
        return vm.qemu.is_file();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(&vm.qemu).is_file())
}
