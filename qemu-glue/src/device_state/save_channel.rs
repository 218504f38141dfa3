//! What QEMU saves its devices by: the file that it writes, and a QMP connection for this command alone.
//!
//! The connection is there because a command costs time for each byte of it (`crate::qmp`), and this one has a hundred. On a
//! connection of its own all but the last byte of the next save is always there before the pause begins. QEMU carries out the
//! commands of all its monitors one after the other; of two that wait it takes either first (`monitor_qmp_dispatcher_co`), so the
//! last byte must not leave before the `stop` is under way, which the event STOP says.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use qapi::qmp;

use super::save_file::{SaveFile, path_in_qemu};
use crate::error::Result;
use crate::qmp::{Batch, Qmp, Reply};

/// Our ends, before QEMU was started.
#[derive(Debug)]
pub(crate) struct SaveEnds {
    file: SaveFile,
    socket: UnixStream,
}

/// QEMU's ends, to be inherited.
#[derive(Debug)]
pub(crate) struct QemuSaveEnds {
    pub(crate) file: OwnedFd,
    pub(crate) qmp: OwnedFd,
}

impl SaveEnds {
    /// A new file and a new pair of sockets.
    pub(crate) fn create() -> io::Result<(Self, QemuSaveEnds)> {
        let file = SaveFile::create()?;
        let (socket, qmp) = UnixStream::pair()?;
        let theirs = QemuSaveEnds {
            file: file.for_qemu()?,
            qmp: qmp.into(),
        };
        Ok((SaveEnds { file, socket }, theirs))
    }

    /// Waits for QEMU's greeting.
    pub(crate) async fn connect(self) -> Result<SaveChannel> {
        Ok(SaveChannel {
            file: self.file,
            qmp: Qmp::connect(self.socket).await?,
        })
    }
}

/// The file and the connection.
#[derive(Debug)]
pub(crate) struct SaveChannel {
    file: SaveFile,
    qmp: Qmp,
}

impl SaveChannel {
    /// To be called before each save, when no other is under way.
    pub(super) fn rewind(&self) -> io::Result<()> {
        self.file.rewind()
    }

    /// Asks for a save. The answer is to come to `reply`, also if this is dropped.
    pub(super) async fn ask(
        &self,
        reply: &mut Option<Reply<qmp::xen_save_devices_state>>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        *reply = Some(batch.add(&command())?);
        self.qmp.send(batch).await
    }

    /// Spells the next save, so that one byte will ask for it.
    pub(super) async fn spell_ahead(&self) -> Result<()> {
        let mut batch = Batch::default();
        batch.spell_next(&command())?;
        self.qmp.send(batch).await
    }

    /// How often the guest was reset. QEMU tells here before it answers to a save that came after the reset; on another
    /// connection that might be seen later.
    pub(super) fn resets(&self) -> u64 {
        self.qmp.resets()
    }

    /// All that QEMU has written.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        self.file.read()
    }
}

fn command() -> qmp::xen_save_devices_state {
    qmp::xen_save_devices_state {
        filename: path_in_qemu(),
        // The disks stay with this QEMU.
        live: Some(false),
    }
}
