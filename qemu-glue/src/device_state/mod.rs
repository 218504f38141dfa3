//! Takes the device state of a stopped VM: all of it but the guest's RAM, as one opaque stream that a standby QEMU loads.
//!
//! There are two ways, behind one interface:
//!
//! - `migrate`: QMP `migrate` with `x-ignore-shared`, which leaves the shared RAM file out. Any `-incoming` loads it. It
//!   starts a thread, sends the machine's ROMs each time, closes and opens the disks.
//! - `save`: QMP `xen-save-devices-state`, which is not about Xen. QEMU writes its devices to a file and nothing else, in
//!   a quarter of the time; the ROMs come from the last whole stream (`head`), as long as they are known not to have
//!   changed (`roms`). Where that is not known, it is the first way.

pub mod head;
mod migrate;
mod roms;
mod save;
mod save_channel;
mod save_file;
#[cfg(test)]
mod streams;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use qapi::qmp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::qmp::{Batch, Qmp};

pub(crate) use migrate::bind_private;
pub(crate) use save::{NotSaved, SaveStream};
pub(crate) use save_channel::{QemuSaveEnds, SaveChannel, SaveEnds};
pub(crate) use save_file::add_fd;

/// Refuses a stream beyond this: device state is well below 1 MiB, unless RAM of a device (VGA memory) travels along.
const STREAM_LIMIT: u64 = 1 << 30;

/// The ways to take the device state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceStateKind {
    /// QEMU saves its devices alone; the ROMs are kept from an earlier stream.
    Save,
    /// A migration without RAM.
    Migrate,
}

impl fmt::Display for DeviceStateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceStateKind::Save => "save",
            DeviceStateKind::Migrate => "migrate",
        })
    }
}

/// What the description asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceStateChoice {
    /// Save where the machine's ROMs are known to be constant, else migrate, with a warning that says why.
    #[default]
    Auto,
    /// Save or fail. Single checkpoints are still taken by migrate: the first, after a reset of the guest, and one in
    /// four thousand, to see that the ROMs have not changed.
    Save,
    /// Migrate.
    Migrate,
}

/// Device state of one instant, as [`crate::StandbyVm::resume_from`] loads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStream {
    /// What comes first; shared by the streams of many checkpoints.
    head: Option<Arc<[u8]>>,
    /// With a head, it begins with a preamble that the head has already.
    rest: Vec<u8>,
}

impl DeviceStream {
    fn whole(stream: Vec<u8>) -> Self {
        DeviceStream {
            head: None,
            rest: stream,
        }
    }

    /// `saved` begins as a stream does.
    fn behind(head: &Arc<[u8]>, saved: Vec<u8>) -> Self {
        DeviceStream {
            head: Some(Arc::clone(head)),
            rest: saved,
        }
    }

    /// In which way it was taken.
    pub fn kind(&self) -> DeviceStateKind {
        match self.head {
            Some(_) => DeviceStateKind::Save,
            None => DeviceStateKind::Migrate,
        }
    }

    /// The whole stream. Copies a few hundred KB: not to be done while the guest is stopped.
    pub fn into_vec(self) -> Vec<u8> {
        match self.head {
            None => self.rest,
            Some(head) => {
                let rest = self.rest.get(head::PREAMBLE.len()..).unwrap_or_default();
                [&*head, rest].concat()
            }
        }
    }
}

/// A way to take the device state.
pub(crate) trait DeviceState {
    /// A save that was put into a batch of commands.
    type Begun: Send;

    /// Adds the save to `batch`, right behind the `stop`, unless it has a way of its own.
    fn begin(&mut self, qmp: &Qmp, batch: &mut Batch) -> Result<Self::Begun>;

    /// QEMU carries the `stop` out, or has done so: what it is asked now comes after it.
    fn stopping(&mut self, _begun: &mut Self::Begun) -> impl Future<Output = Result<()>> + Send {
        std::future::ready(Ok(()))
    }

    /// Waits for the end of the save and returns the stream. The VM can be resumed after this, also if it fails; if the
    /// future is dropped, only after [`DeviceState::abandon`].
    fn finish(
        &mut self,
        qmp: &Qmp,
        begun: &mut Self::Begun,
    ) -> impl Future<Output = Result<DeviceStream>> + Send;

    /// To be called when there is time: makes the next save quicker. A connection that is closed shows elsewhere.
    fn get_ready(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Ends a save that nobody waits for any more.
    fn abandon(&mut self, qmp: &Qmp, begun: Self::Begun) -> impl Future<Output = ()> + Send;
}

/// Leaves shared RAM out of migration streams and makes QEMU report their states.
pub(crate) async fn set_capabilities(qmp: &Qmp) -> Result<()> {
    let on = |capability| qmp::MigrationCapabilityStatus {
        capability,
        state: true,
    };
    let capabilities = vec![
        on(qmp::MigrationCapability::x_ignore_shared),
        on(qmp::MigrationCapability::events),
    ];
    qmp.execute(&qmp::migrate_set_capabilities { capabilities })
        .await
        .map(drop)
}

/// A migration URI for a unix socket.
pub(crate) fn unix_uri(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .filter(|p| !p.contains(','))
        .ok_or_else(|| Error::DeviceState {
            problem: format!(
                "runtime_dir {} must be plain text without a comma",
                path.display()
            ),
        })?;
    Ok(format!("unix:{text}"))
}
