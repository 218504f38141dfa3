//! An object on a server below as the image of a disk. Knows no protocol.

use std::io;

use bytes::{Bytes, BytesMut};

use super::remote::Remote;
use super::volume::Volume;
use crate::group::RawImage;

/// An image on a server.
#[derive(Debug)]
pub(super) struct RemoteImage<R> {
    volume: Volume<R>,
    read_only: bool,
}

impl<R: Remote> RemoteImage<R> {
    /// The image that `remote` is.
    pub fn new(remote: R, read_only: bool) -> Self {
        Self {
            volume: Volume::new(remote),
            read_only,
        }
    }
}

/// Parts of a write as one.
pub(super) fn join(parts: &[&[u8]]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.freeze()
}

impl<R: Remote> RawImage for RemoteImage<R> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.volume.read(offset, buf)? < buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.volume.write(offset, &join(parts))
    }

    fn write_behind(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.volume.write_behind(offset, &join(parts))
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.volume.zero(offset, len)
    }

    fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        self.volume.trim(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        // Its server may not even offer a flush.
        if self.read_only {
            return Ok(());
        }
        self.volume.sync()
    }

    fn may_wait(&self) -> bool {
        true
    }

    fn trouble(&self) -> Option<String> {
        self.volume.remote().link().trouble()
    }
}
