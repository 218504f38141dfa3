//! A clone that is open: its disks over the past, and who is attached to them. It knows the directory that it is in, and nothing of other clones.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use epoch_log::history::{HistoryError, Kept};

use super::disk::{CloneDisk, Place, files};
use super::error::{CloneError, failed};
use super::identity::{self, Identity, sync_directory};
use crate::attachments::{Attachments, Ticket};
use crate::export::{BlockExtent, Cutter, Export, ExportInfo, IoError};
use crate::group::arena::boot_id;
use crate::group::disk::Disk;
use crate::group::history::export::PastEntry;
use crate::group::history::past_disk::PastDisk;
use crate::group::history::{GroupHistory, now_ms, rfc3339};

/// Name of the pin that keeps the point of a clone.
pub fn pin_name(clone: &str) -> String {
    format!("{PIN_PREFIX}{clone}")
}

/// How the names of pins of clones begin.
pub const PIN_PREFIX: &str = "clone-";

/// The group around a clone.
#[derive(Debug, Clone, Copy)]
pub struct Around<'a> {
    /// The group's name.
    pub group: &'a str,
    /// Its past.
    pub history: &'a GroupHistory,
    /// Its disks.
    pub disks: &'a [Arc<Disk>],
}

impl Around<'_> {
    fn disks_now(&self) -> Vec<(String, u64)> {
        let disks = self.disks.iter();
        disks
            .map(|disk| (disk.name.clone(), disk.image.size()))
            .collect()
    }
}

/// Makes the files of a clone of `point` in `dir`, which is there and empty. It is there when this returns, or not at all.
///
/// # Errors
/// [`CloneError::Io`]; some files may be left.
pub fn create(around: &Around<'_>, point: Kept, dir: &Path) -> Result<(), CloneError> {
    let identity = Identity {
        id: uuid::Uuid::new_v4().into_bytes(),
        log: around.history.past.id(),
        epoch: point.epoch,
        time_ms: point.time_ms,
        created_ms: now_ms(),
        disks: around.disks_now(),
    };
    for place in places(&identity, dir, [0; 16]) {
        place.create()?;
    }
    sync_directory(dir).map_err(failed("sync", dir))?;
    identity.write(dir)
}

/// Takes the files of a clone away: first what makes it one. `disks` are names of its disks. The directory goes, too, if nothing else is in it.
///
/// # Errors
/// [`CloneError::Io`].
pub fn delete<'a>(dir: &Path, disks: impl Iterator<Item = &'a str>) -> Result<(), CloneError> {
    let of_disks = disks.flat_map(|disk| files(dir, disk));
    let of_clone = [identity::NAME, identity::NEW_NAME].map(|name| dir.join(name));
    for path in of_clone.into_iter().chain(of_disks) {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path)(error));
            }
            _ => {}
        }
    }
    if let Err(error) = std::fs::remove_dir(dir) {
        // It was there before, as a mount point perhaps, or somebody has put something into it.
        tracing::debug!(dir = %dir.display(), %error, "the directory stays");
    }
    Ok(())
}

fn places<'a>(
    identity: &'a Identity,
    dir: &'a Path,
    boot: [u8; 16],
) -> impl Iterator<Item = Place<'a>> {
    (0..)
        .zip(&identity.disks)
        .map(move |(number, (disk, size))| Place {
            dir,
            disk,
            number,
            size: *size,
            id: identity.id,
            boot,
        })
}

/// An open clone.
#[derive(Debug)]
pub struct OpenClone {
    name: String,
    group: String,
    identity: Identity,
    disks: Vec<CloneDisk>,
    clients: Arc<Attachments>,
}

impl OpenClone {
    /// Opens the clone in `dir`, and pins its point if nobody does any more.
    ///
    /// # Errors
    /// [`CloneError`].
    pub fn open(around: &Around<'_>, name: &str, dir: &Path) -> Result<Self, CloneError> {
        let identity = Identity::read(dir)?;
        let past = &around.history.past;
        if identity.log != past.id() {
            return Err(CloneError::Foreign {
                path: dir.join(identity::NAME),
            });
        }
        let disks = around.disks_now();
        if identity.disks != disks {
            return Err(CloneError::OtherDisks {
                was: listed(&identity.disks),
                is: listed(&disks),
            });
        }
        keep(around.history, name, &identity)?;
        // An id of its own would do if the system had none: nothing is found again then.
        let boot = boot_id().unwrap_or_else(|_| uuid::Uuid::new_v4().into_bytes());
        let opened = places(&identity, dir, boot)
            .zip(around.disks)
            .map(|(place, disk)| {
                let view = past.view(identity.epoch)?;
                let number = usize::from(place.number);
                CloneDisk::open(&place, PastDisk::new(view, number, disk))
            })
            .collect::<Result<Vec<_>, CloneError>>()?;
        Ok(Self {
            name: name.to_owned(),
            group: around.group.to_owned(),
            identity,
            disks: opened,
            clients: Arc::default(),
        })
    }

    /// Bytes of blocks that are its own.
    pub fn written(&self) -> u64 {
        self.disks.iter().map(CloneDisk::written).sum()
    }

    /// Who is attached.
    pub fn clients(&self) -> &Arc<Attachments> {
        &self.clients
    }

    /// Makes everything durable.
    pub fn settle(&self) {
        for disk in &self.disks {
            // What failed has been reported.
            let _ = disk.settle();
        }
    }

    /// What a client of disk `number` is told. None: there is no such disk.
    pub fn info(&self, number: usize) -> Option<ExportInfo> {
        let (disk, size) = self.identity.disks.get(number)?;
        Some(ExportInfo {
            description: format!(
                "disk {disk} of clone {} of group {}, made at epoch {}, {}",
                self.name,
                self.group,
                self.identity.epoch,
                rfc3339(self.identity.time_ms)
            ),
            // It may have to be written, where the file system can't punch holes.
            can_fast_zero: false,
            // The next process finds what was not flushed.
            reconnects: true,
            ..ExportInfo::full(*size)
        })
    }

    /// Attaches one connection, `entry` in the group, to disk `number`. None: there is no such disk.
    pub fn attach(
        self: &Arc<Self>,
        number: usize,
        cutter: Cutter,
        entry: PastEntry,
    ) -> Option<CloneExport> {
        let info = self.info(number)?;
        Some(CloneExport {
            clone: Arc::clone(self),
            number,
            info,
            _ticket: self.clients.enter(cutter),
            _entry: entry,
        })
    }
}

/// Sees that the point of a clone is there, is the one it was made at, and stays.
fn keep(history: &GroupHistory, name: &str, identity: &Identity) -> Result<(), CloneError> {
    let past = &history.past;
    let gone = CloneError::PointGone {
        epoch: identity.epoch,
    };
    let is_it = |point: Kept| point.epoch == identity.epoch && point.time_ms == identity.time_ms;
    let view = match past.view(identity.epoch) {
        Ok(view) if is_it(view.point()) => view,
        Ok(_) | Err(HistoryError::NotKept { .. }) => return Err(gone),
        Err(error) => return Err(error.into()),
    };
    let pin = pin_name(name);
    match past.pin_named(&pin) {
        Ok(pin) if is_it(pin.point) => return Ok(()),
        Ok(_) => past.unpin(&pin).map(drop)?,
        Err(HistoryError::NoPin { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    past.pin(&pin, view.point().epoch)?;
    Ok(())
}

fn listed(disks: &[(String, u64)]) -> String {
    let disks = disks
        .iter()
        .map(|(name, size)| format!("{name} of {size} bytes"));
    disks.collect::<Vec<_>>().join(", ")
}

/// One attachment to a disk of a clone.
#[derive(Debug)]
pub struct CloneExport {
    clone: Arc<OpenClone>,
    number: usize,
    info: ExportInfo,
    /// These are dropped last: whoever waits for them finds the files free.
    _ticket: Ticket,
    _entry: PastEntry,
}

impl CloneExport {
    fn disk(&self) -> Result<&CloneDisk, IoError> {
        self.clone.disks.get(self.number).ok_or(IoError::Inval)
    }

    fn then_flush(&self, fua: bool) -> Result<(), IoError> {
        if fua { self.flush() } else { Ok(()) }
    }
}

impl Export for CloneExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn try_read(&self, _offset: u64, _buf: &mut [u8]) -> Result<bool, IoError> {
        Ok(false)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.disk()?.read(offset, buf)
    }

    fn try_write(&self, _offset: u64, _data: &[u8], _fua: bool) -> Result<bool, IoError> {
        Ok(false)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        self.disk()?.write(offset, &data)?;
        self.then_flush(fua)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.disk()?.flush()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.write_zeroes(offset, len, true, false, fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_trim: bool,
        _fast: bool,
        fua: bool,
    ) -> Result<(), IoError> {
        self.disk()?.clear(offset, len, may_trim)?;
        self.then_flush(fua)
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        self.disk()?.block_status(offset, len, max_extents)
    }
}
