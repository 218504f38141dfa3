//! What is asked before a VM is started from its disks. Attaching fences whoever has the disks and voids the memory that
//! a standby holds, so everything that can be wrong is found out first.

use nbd_server::control::api::{AttachmentKind, GroupStatus};
use nbd_server::control::client::{Client, ControlError};
use qemu_glue::VmDescription;

use crate::config::ProtectConfig;
use crate::disks::{self, DisksError};
use crate::saved_state::Origin;

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
    /// The memory that it is to go on with does not belong to the disks.
    #[error("the saved state in {} can't be used: {reason}", dir.display())]
    SavedState {
        /// Its directory.
        dir: std::path::PathBuf,
        /// Why.
        reason: String,
    },
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

/// Finds out whether the VM can and may be started here, and the newest committed epoch. Changes nothing.
pub(crate) async fn check(
    client: &Client,
    config: &ProtectConfig,
) -> Result<nbd_server::Epoch, NotStarted> {
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
    if let Some(dir) = config.saved_state.as_ref().filter(|_| !config.any_disks) {
        let refused = |reason| NotStarted::SavedState {
            dir: dir.clone(),
            reason,
        };
        let origin = Origin::read(dir).map_err(|error| refused(error.to_string()))?;
        let nothing = || "it does not say which disks belong to it".to_owned();
        let origin = origin.ok_or_else(nothing).map_err(refused)?;
        origin.check(&group).map_err(refused)?;
    }
    if !config.cold_start {
        nobody_else_has_it(&group)?;
    }
    Ok(group.committed)
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
