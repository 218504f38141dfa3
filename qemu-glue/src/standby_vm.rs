//! A QEMU that waits with a copy of the guest's memory and continues the guest when told. Knows no epochs.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use qapi::qmp;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::broadcast;

use crate::description::{DiskAttachment, Role, RuntimePlace, VmDescription};
use crate::device_state::{set_capabilities, unix_uri};
use crate::error::{Error, Result};
use crate::fingerprint::Fingerprint;
use crate::guest_ram::GuestRam;
use crate::launch::{Launched, Start};
use crate::pause::{ResumeParts, micros};
use crate::qmp::{Batch, VmEvent};
use crate::source_vm::SourceVm;

/// A standby QEMU, already running but without a guest. Killed when dropped.
#[derive(Debug)]
pub struct StandbyVm {
    launched: Launched,
}

impl StandbyVm {
    /// Starts QEMU on `ram`, which may hold memory already: QEMU leaves it as it is.
    ///
    /// # Errors
    /// A description that can't be protected, a RAM file of another size, or QEMU's own reason why it doesn't start.
    pub async fn launch(
        description: &VmDescription,
        place: &RuntimePlace,
        disks: &[DiskAttachment],
        ram: Arc<GuestRam>,
    ) -> Result<Self> {
        description.validate(disks)?;
        if place.role == Role::Clone {
            description.validate_clone()?;
        }
        if ram.len() != description.memory_bytes() {
            return Err(Error::Description {
                vm: description.name.clone(),
                problem: format!(
                    "memory_mib is {} but the RAM file has {} MiB: source and standby need the same memory_mib",
                    description.memory_mib,
                    ram.len() >> 20
                ),
            });
        }
        let launched = Launched::start(description, place, disks, ram, Start::Incoming).await?;
        let standby = StandbyVm { launched };
        let prepared = standby.prepare().await;
        standby.launched.explained(prepared).await?;
        Ok(standby)
    }

    /// Makes QEMU listen for the device state, so that a takeover has nothing left to set up.
    async fn prepare(&self) -> Result<()> {
        let qmp = self.launched.qmp();
        set_capabilities(qmp).await?;
        qmp.forget_migration();
        let uri = Some(unix_uri(&self.launched.socket_path("incoming"))?);
        let listen = qmp::migrate_incoming {
            channels: None,
            exit_on_error: None,
            uri,
        };
        let mut batch = Batch::default();
        let mut listening = batch.add(&listen)?;
        // What a takeover ends with.
        batch.spell_next(&qmp::cont {})?;
        qmp.send(batch).await?;
        listening.answer().await.map(drop)
    }

    /// Name of the VM.
    pub fn name(&self) -> &str {
        self.launched.name()
    }

    /// Process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.launched.pid()
    }

    /// As [`SourceVm::watch_socket`], before and after the takeover.
    pub fn watch_socket(&self) -> &Path {
        self.launched.watch_socket()
    }

    /// The memory that the guest will have.
    pub fn ram(&self) -> &Arc<GuestRam> {
        self.launched.ram()
    }

    /// What the source must be like for this one to continue its guest.
    pub fn fingerprint(&self) -> &Fingerprint {
        self.launched.fingerprint()
    }

    /// Kills QEMU and waits until it is gone. The RAM file stays as long as someone holds [`StandbyVm::ram`].
    pub async fn kill(self) {
        self.launched.kill().await;
    }

    /// Events of QEMU from now on; [`VmEvent::Closed`] tells that it died.
    pub fn subscribe(&self) -> broadcast::Receiver<VmEvent> {
        self.launched.qmp().subscribe()
    }

    /// Loads the device state and lets the guest run on from it and from what [`StandbyVm::ram`] holds.
    ///
    /// # Errors
    /// QEMU refuses the device state: the two descriptions differ, or it is damaged. This standby is lost then.
    pub async fn resume_from(self, device_state: &[u8]) -> Result<(SourceVm, ResumeParts)> {
        let mut parts = ResumeParts::default();
        let began = Instant::now();
        let loaded = self.load(device_state).await;
        self.launched.explained(loaded).await?;
        parts.load = micros(began.elapsed());
        let resuming = Instant::now();
        let resumed = self.launched.cont().await;
        self.launched.explained(resumed).await?;
        parts.resume = micros(resuming.elapsed());
        parts.total = micros(began.elapsed());
        Ok((SourceVm::from_launched(self.launched).await?, parts))
    }

    async fn load(&self, device_state: &[u8]) -> Result<()> {
        let broken = |e: io::Error| Error::DeviceState {
            problem: format!("the stream to QEMU broke: {e}"),
        };
        let path = self.launched.socket_path("incoming");
        let mut socket = UnixStream::connect(&path)
            .await
            .map_err(Error::file("connect to the standby's QEMU at", &path))?;
        socket.write_all(device_state).await.map_err(broken)?;
        socket.shutdown().await.map_err(broken)?;
        self.launched.qmp().migration_end().await
    }
}
