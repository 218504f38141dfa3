//! Structured replies, as they come. What is not as it must be ends the connection: there is no way to find the next reply.

use std::io::{self, Read};

use nbd_server::protocol::{self as wire, WireReader};

/// Longest chunk that is no data, in bytes: extents of one context.
const MOST_CHUNK: usize = 16 << 20;

pub(super) fn garbled(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the NBD server is not understood: {what}"),
    )
}

/// What stands before the content of a chunk.
pub(super) struct Chunk {
    pub last: bool,
    kind: u16,
    pub cookie: u64,
    len: usize,
}

pub(super) fn header(from: &mut dyn Read) -> io::Result<Chunk> {
    let mut bytes = [0; wire::CHUNK_HEADER_LEN];
    from.read_exact(&mut bytes)?;
    let mut reader = WireReader(&bytes);
    let magic = reader.u32();
    let fields = (reader.u16(), reader.u16(), reader.u64(), reader.u32());
    let (Some(flags), Some(kind), Some(cookie), Some(len)) = fields else {
        return Err(garbled("a reply is cut off"));
    };
    if magic != Some(wire::STRUCTURED_REPLY_MAGIC) {
        return Err(garbled("a reply does not begin as replies do"));
    }
    Ok(Chunk {
        last: flags & wire::CHUNK_FLAG_DONE != 0,
        kind,
        cookie,
        len: usize::try_from(len).unwrap_or(usize::MAX),
    })
}

fn content(from: &mut dyn Read, len: usize) -> io::Result<Vec<u8>> {
    if len > MOST_CHUNK {
        return Err(garbled("a reply that is too long"));
    }
    let mut content = vec![0; len];
    from.read_exact(&mut content)?;
    Ok(content)
}

/// The error of a chunk that is one.
fn error(kind: u16, content: &[u8]) -> io::Result<()> {
    if kind & (1 << 15) == 0 {
        return Ok(());
    }
    let mut reader = WireReader(content);
    let number = reader.u32().unwrap_or(5);
    let len = reader.u16().unwrap_or(0);
    let text = reader.bytes(len.into()).unwrap_or_default();
    Err(io::Error::other(format!(
        "the gateway says: NBD error {number} {}",
        String::from_utf8_lossy(text)
    )))
}

/// The answer to a read, as far as it has come.
pub(super) struct Reading {
    offset: u64,
    data: Vec<u8>,
    left: usize,
}

impl Reading {
    pub fn new(offset: u64, len: u32) -> Self {
        let len = usize::try_from(len).unwrap_or(0);
        Self {
            offset,
            data: vec![0; len],
            left: len,
        }
    }

    /// Takes the content of a chunk.
    pub fn take(&mut self, from: &mut dyn Read, chunk: &Chunk) -> io::Result<()> {
        match chunk.kind {
            wire::chunk::OFFSET_DATA => {
                let mut offset = [0; wire::CHUNK_OFFSET_LEN];
                from.read_exact(&mut offset)?;
                let len = chunk.len.checked_sub(offset.len());
                let part = len.and_then(|len| self.part(u64::from_be_bytes(offset), len));
                let part = part.ok_or_else(|| garbled("data that was not asked for"))?;
                let len = part.len();
                from.read_exact(part)?;
                self.left = self.left.saturating_sub(len);
            }
            wire::chunk::OFFSET_HOLE => {
                let bytes = content(from, chunk.len)?;
                let mut reader = WireReader(&bytes);
                let (offset, len) = (reader.u64(), reader.u32());
                let len = len.and_then(|len| usize::try_from(len).ok());
                let part = offset.zip(len).and_then(|(at, len)| self.part(at, len));
                let part = part.ok_or_else(|| garbled("a hole that was not asked for"))?;
                part.fill(0);
                let len = part.len();
                self.left = self.left.saturating_sub(len);
            }
            kind => error(kind, &content(from, chunk.len)?)?,
        }
        Ok(())
    }

    fn part(&mut self, offset: u64, len: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(offset.checked_sub(self.offset)?).ok()?;
        self.data.get_mut(start..start.checked_add(len)?)
    }

    /// The data, when the last chunk was taken.
    pub fn finish(&self) -> io::Result<&[u8]> {
        match self.left {
            0 => Ok(&self.data),
            _ => Err(garbled("a part of what was asked for is missing")),
        }
    }
}

/// The context and the extents of a chunk, if it has any.
#[allow(clippy::type_complexity, reason = "length and flags, for one context")]
pub(super) fn extents(
    from: &mut dyn Read,
    chunk: &Chunk,
) -> io::Result<Option<(u32, Vec<(u64, u32)>)>> {
    let bytes = content(from, chunk.len)?;
    error(chunk.kind, &bytes)?;
    if chunk.kind != wire::chunk::BLOCK_STATUS {
        return Ok(None);
    }
    let mut reader = WireReader(&bytes);
    let id = reader
        .u32()
        .ok_or_else(|| garbled("extents without a context"))?;
    let mut extents = Vec::with_capacity(bytes.len() / 8);
    while let Some((len, flags)) = reader.u32().zip(reader.u32()) {
        extents.push((u64::from(len), flags));
    }
    Ok(Some((id, extents)))
}
