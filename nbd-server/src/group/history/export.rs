//! A disk as it was at one point in time, read-only, for as long as somebody is attached. Knows nothing of who may attach.

use std::sync::Arc;

use bytes::Bytes;
use epoch_log::Epoch;
use epoch_log::history::View;

use super::past_disk::PastDisk;
use super::point::rfc3339;
use crate::export::{BlockExtent, Cutter, Export, ExportInfo, IoError};
use crate::group::disk::{Disk, Rights};
use crate::group::shared::{Entry, Shared};

/// Counts one connection to the past, or to a clone, among those of the group, until it is dropped.
#[derive(Debug)]
pub struct PastEntry {
    shared: Arc<Shared>,
    number: u64,
}

impl PastEntry {
    /// A connection by the name that has `instance` behind its `@`.
    pub(in crate::group) fn new(shared: &Arc<Shared>, instance: &str, cutter: Cutter) -> Self {
        let entry = Entry {
            instance: Some(instance.to_owned()),
            rights: Arc::new(Rights::parked()),
            cutter,
            past: true,
        };
        Self {
            number: shared.enter(&mut shared.core(), entry),
            shared: Arc::clone(shared),
        }
    }
}

impl Drop for PastEntry {
    fn drop(&mut self) {
        self.shared.core().entries.remove(&self.number);
    }
}

/// One attachment to a disk of the past.
#[derive(Debug)]
pub struct HistoricExport {
    past: PastDisk,
    info: ExportInfo,
    /// Dropped last: when it is gone, nobody looks at the history any more.
    _entry: PastEntry,
}

impl HistoricExport {
    /// The disk `past` of the group `group`, for the connection `entry`.
    pub fn new(entry: PastEntry, group: &str, past: PastDisk) -> Self {
        Self {
            info: info(past.disk(), group, past.view()),
            past,
            _entry: entry,
        }
    }
}

/// What a client of such a disk is told.
pub fn info(disk: &Disk, group: &str, view: &View) -> ExportInfo {
    let point = view.point();
    ExportInfo {
        read_only: true,
        description: format!(
            "disk {} of group {group} at epoch {}, {}",
            disk.name,
            point.epoch,
            rfc3339(point.time_ms)
        ),
        ..ExportInfo::full(disk.image.size())
    }
}

impl Export for HistoricExport {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn try_read(&self, _offset: u64, _buf: &mut [u8]) -> Result<bool, IoError> {
        Ok(false)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.past.read(offset, buf)
    }

    fn try_write(&self, _offset: u64, _data: &[u8], _fua: bool) -> Result<bool, IoError> {
        Err(IoError::Perm)
    }

    fn write(&self, _offset: u64, _data: Bytes, _fua: bool) -> Result<(), IoError> {
        Err(IoError::Perm)
    }

    fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    fn shows(&self) -> Option<Epoch> {
        Some(self.past.view().point().epoch)
    }

    fn trim(&self, _offset: u64, _len: u64, _fua: bool) -> Result<(), IoError> {
        Err(IoError::Perm)
    }

    fn write_zeroes(
        &self,
        _offset: u64,
        _len: u64,
        _may_trim: bool,
        _fast: bool,
        _fua: bool,
    ) -> Result<(), IoError> {
        Err(IoError::Perm)
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        self.past.block_status(offset, len, max_extents)
    }
}
