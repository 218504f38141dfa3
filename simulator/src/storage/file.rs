//! Open files, and images.

use std::io::{self, IoSlice};

use epoch_log::forgetful::Change;
use epoch_log::storage::StorageFile;
use nbd_server::group::RawImage;

use crate::planted::Planted;

use super::{ENOSPC, Op, SimDisk};

/// An open file, or an image.
#[derive(Debug)]
pub struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) id: usize,
}

impl SimFile {
    /// Looks at what a process would see, without reading.
    pub fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.disk.state().files[self.id].seen)
    }

    /// Durably writes past everything: a repair from outside, while no process has the file.
    pub fn repair(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.disk.state();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let file = &mut state.files[self.id];
        for copy in [&mut file.seen, &mut file.durable] {
            copy[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Writes past everything: what only a planted mistake does.
    pub fn scribble(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.disk.state();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = bytes.to_vec();
        state.change(self.id, Change::Write { offset, bytes });
    }
}

impl StorageFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.id].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.check(None, false)?;
        let file = &state.files[self.id];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = file.seen.get(from..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        for slice in slices.iter() {
            bytes.extend_from_slice(slice);
        }
        self.disk.state().write(self.id, offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        if state.lies(Planted::SkipHistorySync) && !self.disk.prefix.is_empty() {
            return Ok(());
        }
        state.sync(self.id)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(None, true)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        state.files[self.id].allocated = 0;
        state.change(self.id, Change::Truncate { len });
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(None, true)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let file = &state.files[self.id];
        let held = file.seen.len().max(file.allocated);
        if state.used() - held + len.max(held) > state.room {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        state.files[self.id].allocated = len;
        Ok(())
    }
}

impl RawImage for SimFile {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(Some(Op::ReadImage), false)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let seen = state.files[self.id].seen.get(from..from + buf.len());
        buf.copy_from_slice(seen.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.disk.state().write(self.id, offset, parts.concat())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.disk.state().write(self.id, offset, vec![0; len])
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.state().sync(self.id)
    }
}
