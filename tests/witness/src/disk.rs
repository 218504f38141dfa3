//! One disk, or a plain file in its place: direct I/O on whole blocks. Knows nothing of what is in them.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate};

use crate::block::BLOCK_SIZE;
use crate::discard;

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It can't be opened or its size read.
    #[error("{path} can't be opened for direct reads and writes")]
    Open {
        /// The disk.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It has no room for a block.
    #[error("{0} is smaller than one block of {BLOCK_SIZE} bytes")]
    TooSmall(PathBuf),
}

/// How a range is made to read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zeroing {
    /// Write zeroes, space may be given back.
    Unmap,
    /// Write zeroes, space stays allocated.
    Allocate,
    /// Discard: afterwards the range holds zeros or what it held before.
    Discard,
}

/// An open disk. Shared by all workers.
#[derive(Debug)]
pub struct Disk {
    file: File,
    blocks: usize,
}

impl Disk {
    /// Opens `path`, and uses its first `limit` blocks or as many as it has.
    ///
    /// # Errors
    /// If it can't be opened with `O_DIRECT`, or is too small.
    pub fn open(path: &Path, limit: usize) -> Result<Self, DiskError> {
        let open = || {
            let direct = i32::try_from(OFlags::DIRECT.bits()).map_err(io::Error::other)?;
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(direct)
                .open(path)?;
            let size = file.seek(SeekFrom::End(0))?;
            Ok((file, size))
        };
        let (file, size) = open().map_err(|source| DiskError::Open {
            path: path.to_owned(),
            source,
        })?;
        let blocks = usize::try_from(size / (BLOCK_SIZE as u64))
            .unwrap_or(usize::MAX)
            .min(limit);
        if blocks == 0 {
            return Err(DiskError::TooSmall(path.to_owned()));
        }
        Ok(Self { file, blocks })
    }

    /// The number of blocks in use.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Reads whole blocks from byte `offset`.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Writes whole blocks at byte `offset`.
    pub fn write(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buffer, offset)
    }

    /// Makes all writes that have returned durable.
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Zeroes or discards `len` bytes at `offset`. On block devices Linux turns fallocate into write-zeroes
    /// requests, so that only the discard needs a call of its own.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the disk has no such operation.
    pub fn zero(&self, how: Zeroing, offset: u64, len: u64) -> io::Result<()> {
        let mode = match how {
            Zeroing::Unmap => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Zeroing::Allocate => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            Zeroing::Discard => return discard::discard(&self.file, offset, len),
        };
        fallocate(&self.file, mode, offset, len).map_err(io::Error::from)
    }
}

/// Memory aligned as direct I/O demands.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// A buffer for `blocks` blocks.
    pub fn new(blocks: usize) -> Self {
        let bytes = vec![0; (blocks + 1) * BLOCK_SIZE];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE).min(BLOCK_SIZE);
        Self { bytes, start }
    }

    /// The first `blocks` blocks of it.
    pub fn blocks_mut(&mut self, blocks: usize) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + blocks * BLOCK_SIZE]
    }
}
