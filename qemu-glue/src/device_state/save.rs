//! Device state by QMP `xen-save-devices-state`, with the head of an earlier stream in front.
//!
//! The command writes all devices and nothing else, from QEMU's main loop, and answers when that is done. Compared with
//! `migrate` (QEMU's migration/savevm.c, 7.2 and 10.0):
//!
//! - The devices are the same, in the same order. What has a state that travels in rounds (RAM, block migration) is left
//!   out; a head with any such section but RAM, or with a device before the end of RAM, is not taken.
//! - With `live` false the disks stay active; `migrate` gives them up at its end, and `cont` has to take them again.
//!   (`live` true, the default, would give them up as well, if the guest is already stopped.) The standby activates its
//!   disks at its own `cont`, in both ways.
//! - It stores that the guest runs, whatever it does: a standby must be started with `-S`, as ours are, so that it waits for
//!   `cont`. A guest that was *not* running, because it panicked or a disk failed, would lose that; also, `cont` refuses
//!   a guest that panicked unless a migration made QEMU forget it. So what was taken of a guest that had already been
//!   stopped is dropped, and `migrate` takes its place.
//! - It does not ask whether the machine can be migrated at all. `migrate` did, for the head. The one thing that can change
//!   this later is a guest that mounts a 9p share: machines with one are left to `migrate`.
//!
//! The head is good until the guest is reset or its firmware reads the ACPI tables ([`super::roms`]); then, in the same
//! pause, `migrate` takes this checkpoint and a new head with it. One in [`VERIFY_AFTER`] checkpoints is taken by `migrate`
//! in any case, and its head compared with the kept one: should they differ although nothing told so, then what is known
//! about ROMs is wrong for this machine. That, and anything that is not understood, makes it `migrate` for the life of
//! the VM. No checkpoint is lost by it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use qapi::qmp;

use super::head::{self, Head, HeadError, PREAMBLE, section};
use super::migrate::MigrateStream;
use super::roms::{self, AcpiTables, RomError};
use super::save_channel::SaveChannel;
use super::{DeviceState, DeviceStateChoice, DeviceStateKind, DeviceStream};
use crate::error::{Error, Result};
use crate::launch::Launched;
use crate::qmp::{Batch, Qmp, Reply};

/// Saves with the same head before it is looked at again. At 40 epochs a second that is every 100 s.
const VERIFY_AFTER: u32 = 4096;

/// Why device state is not taken by `xen-save-devices-state`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotSaved {
    #[error("device_state is \"migrate\"")]
    NotWanted,
    #[error("its file is already in use")]
    Taken,
    #[error("the guest can make QEMU refuse to migrate ({argument})")]
    Blockable { argument: String },
    #[error("no file for it ({0})")]
    File(#[source] io::Error),
    #[error("QEMU refused the save: {description}")]
    Refused { description: String },
    #[error("QEMU's save does not look like one")]
    Framing,
    #[error("the stream of this QEMU is not understood: {0}")]
    Head(#[from] HeadError),
    #[error("{0}")]
    Roms(#[from] RomError),
    #[error("the ROMs of this machine have changed, and nothing told so")]
    Changed,
}

/// What goes in front of the devices.
#[derive(Debug)]
struct KeptHead {
    head: Head,
    bytes: Arc<[u8]>,
    /// What QEMU noted about its ACPI tables at that time.
    tables: AcpiTables,
    /// Resets of the guest until then.
    resets: u64,
    /// Saves since then.
    saves: u32,
}

/// Device state by `xen-save-devices-state` where that is known to be right, else by `migrate`.
#[derive(Debug)]
pub(crate) struct SaveStream {
    vm: String,
    /// Falling back is an error.
    required: bool,
    migrate: MigrateStream,
    /// None: always by `migrate`.
    channel: Option<SaveChannel>,
    kept: Option<KeptHead>,
}

/// A save of either way, or of both, one after the other.
#[derive(Debug)]
pub(crate) struct Begun {
    saving: Option<Saving>,
    migrating: Option<<MigrateStream as DeviceState>::Begun>,
    /// Resets of the guest before all of it.
    resets: u64,
}

#[derive(Debug)]
struct Saving {
    /// None: it is not asked for yet, or was waited for.
    answer: Option<Reply<qmp::xen_save_devices_state>>,
    /// How often the guest had been stopped before.
    stops: u64,
}

impl SaveStream {
    /// Takes over the file of `launched` and prepares its QEMU for both ways.
    pub(crate) async fn prepare(launched: &Launched) -> Result<Self> {
        let path = launched.socket_path("device");
        let migrate = MigrateStream::prepare(launched.qmp(), &path).await?;
        let mut stream = SaveStream {
            vm: launched.name().to_owned(),
            required: launched.device_state_choice() == DeviceStateChoice::Save,
            migrate,
            channel: None,
            kept: None,
        };
        match launched.take_save_channel() {
            Ok(channel) => stream.channel = Some(channel),
            Err(NotSaved::NotWanted) => {}
            Err(reason) => stream.fall_back(&reason)?,
        }
        Ok(stream)
    }

    /// How device state is taken from now on. Before the first stream is known, what is hoped for.
    pub(crate) fn kind(&self) -> DeviceStateKind {
        match self.channel {
            Some(_) => DeviceStateKind::Save,
            None => DeviceStateKind::Migrate,
        }
    }

    /// Takes a first stream of a guest that does not run yet, to know early in which way it can be saved.
    pub(crate) async fn learn(&mut self, qmp: &Qmp) -> Result<()> {
        if self.channel.is_none() {
            return Ok(());
        }
        let mut begun = Begun {
            saving: None,
            migrating: None,
            resets: qmp.resets(),
        };
        match self.finish(qmp, &mut begun).await {
            // The first checkpoint will fail as well, and say so to whom it concerns: an unprotected guest may run.
            Err(Error::Refused { .. } | Error::DeviceState { .. }) if !self.required => Ok(()),
            other => other.map(drop),
        }
    }

    /// `migrate` for the life of the VM.
    fn fall_back(&mut self, reason: &NotSaved) -> Result<()> {
        if self.required {
            return Err(Error::DeviceState {
                problem: format!("{reason}; set device_state to \"auto\" or \"migrate\""),
            });
        }
        tracing::warn!(
            vm = self.vm,
            %reason,
            "device state is taken by migrate: pauses are longer"
        );
        self.channel = None;
        self.kept = None;
        Ok(())
    }

    /// The channel, if the next save can go there.
    fn channel_for_next(&self, qmp: &Qmp) -> Option<&SaveChannel> {
        let kept = self.kept.as_ref()?;
        let good = kept.resets == qmp.resets() && kept.saves < VERIFY_AFTER;
        self.channel.as_ref().filter(|_| good)
    }

    /// The end of a save. None: it can't be used, and `migrate` has to follow.
    async fn saved(&mut self, qmp: &Qmp, saving: &mut Saving) -> Result<Option<DeviceStream>> {
        if let Some(answer) = &mut saving.answer {
            let answered = answer.answer().await;
            saving.answer = None;
            match answered {
                Ok(_) => {}
                Err(Error::Refused { description, .. }) => {
                    self.fall_back(&NotSaved::Refused { description })?;
                }
                Err(error) => return Err(error),
            }
        }
        let (Some(channel), Some(kept)) = (&self.channel, &mut self.kept) else {
            return Ok(None);
        };
        let saved = match channel.read() {
            Ok(saved) => saved,
            Err(error) => return self.fall_back(&NotSaved::File(error)).map(|()| None),
        };
        let devices = match devices_of(&saved) {
            Ok(devices) => devices,
            Err(reason) => return self.fall_back(&reason).map(|()| None),
        };
        // Not once: the guest stood still before. More: QEMU took the save first, for which it stopped the guest and let it run on.
        let was_running = qmp.stops() == saving.stops + 1;
        let head_is_good =
            kept.resets == channel.resets() && kept.tables == roms::acpi_tables(devices);
        if !(was_running && head_is_good) {
            return Ok(None);
        }
        kept.saves += 1;
        Ok(Some(DeviceStream::behind(&kept.bytes, saved)))
    }

    /// Takes the head of a whole stream, if it can be kept. The guest had been reset so often before it, and so often by its end.
    fn keep_head(&mut self, stream: &[u8], (resets, by_then): (u64, u64)) -> Result<()> {
        if self.channel.is_none() {
            return Ok(());
        }
        let new = match KeptHead::of(stream, resets) {
            Ok(new) => new,
            Err(reason) => return self.fall_back(&reason),
        };
        if let Some(old) = &self.kept
            && resets == by_then
            && (old.resets, old.tables) == (new.resets, new.tables)
            && !new.head.same_content(&new.bytes, &old.head, &old.bytes)
        {
            return self.fall_back(&NotSaved::Changed);
        }
        self.kept = Some(new);
        Ok(())
    }
}

impl KeptHead {
    fn of(stream: &[u8], resets: u64) -> Result<Self, NotSaved> {
        let head = head::parse(stream)?;
        let (bytes, devices) = stream
            .split_at_checked(head.length)
            .ok_or(NotSaved::Framing)?;
        Ok(KeptHead {
            tables: roms::check(&head, devices)?,
            bytes: bytes.into(),
            head,
            resets,
            saves: 0,
        })
    }
}

impl DeviceState for SaveStream {
    type Begun = Begun;

    fn begin(&mut self, qmp: &Qmp, batch: &mut Batch) -> Result<Begun> {
        let mut begun = Begun {
            saving: None,
            migrating: None,
            resets: qmp.resets(),
        };
        match self.channel_for_next(qmp) {
            Some(channel) => {
                channel.rewind().map_err(Error::file(
                    "use the file for device state",
                    Path::new("memfd"),
                ))?;
                begun.saving = Some(Saving {
                    stops: qmp.stops(),
                    answer: None,
                });
            }
            None => begun.migrating = Some(self.migrate.begin(qmp, batch)?),
        }
        Ok(begun)
    }

    /// QEMU begins with the save at once when it is through with the `stop`.
    async fn stopping(&mut self, begun: &mut Begun) -> Result<()> {
        if let (Some(channel), Some(saving)) = (&self.channel, &mut begun.saving) {
            channel.ask(&mut saving.answer).await?;
        }
        Ok(())
    }

    async fn get_ready(&self) {
        if let Some(channel) = &self.channel {
            let _ = channel.spell_ahead().await;
        }
    }

    async fn finish(&mut self, qmp: &Qmp, begun: &mut Begun) -> Result<DeviceStream> {
        if let Some(saving) = &mut begun.saving {
            let saved = self.saved(qmp, saving).await?;
            begun.saving = None;
            if let Some(stream) = saved {
                return Ok(stream);
            }
            tracing::debug!(
                vm = self.vm,
                "this checkpoint's device state needs a new head"
            );
        }
        // The guest is still stopped: a second stream is of the same instant as the first.
        let migrating = match &mut begun.migrating {
            Some(migrating) => migrating,
            none => {
                let mut batch = Batch::default();
                let migrating = none.insert(self.migrate.begin(qmp, &mut batch)?);
                qmp.send(batch).await?;
                migrating
            }
        };
        let stream = self.migrate.finish(qmp, migrating).await?;
        begun.migrating = None;
        self.keep_head(&stream.rest, (begun.resets, qmp.resets()))?;
        Ok(stream)
    }

    async fn abandon(&mut self, qmp: &Qmp, begun: Begun) {
        if let Some(mut answer) = begun.saving.and_then(|saving| saving.answer) {
            // QEMU writes until it answers. If it never does, the next save will not be well formed.
            let _ = answer.answer().await;
        }
        if let Some(migrating) = begun.migrating {
            self.migrate.abandon(qmp, migrating).await;
        }
    }
}

/// The devices in what QEMU saved.
fn devices_of(saved: &[u8]) -> Result<&[u8], NotSaved> {
    let devices = saved.strip_prefix(PREAMBLE.as_slice());
    devices
        .filter(|d| d.first() == Some(&section::FULL) && d.last() == Some(&section::EOF))
        .ok_or(NotSaved::Framing)
}
