//! Makes the frames of a checkpoint small for their way, and restores them byte for byte at its end. Pure: no socket, no RAM.
//!
//! Both ends keep what was sent last of each page (`cache.rs`) and of the device state. A page that has not changed since is left out, of one
//! that has changed a little only the difference is sent, and what is left is compressed (`codec.rs`). COMMIT 1 counts and checks the restored
//! frames: a mistake here is found before the standby acknowledges anything.
//!
//! The first copy is compressed only. Its pages may be torn, so nothing may be a difference to them.
//!
//! Payload of a packed frame, all numbers little-endian:
//!
//! ```text
//! ├ codec u32 ┼ length of the payload u32 ┼ length of the body u32 ┼ the body, compressed ┤
//! ```
//!
//! Body of pages: the table of the payload (see [`checkpoint`](crate::checkpoint)), then one byte for each piece, then what the
//! pieces need. A piece is what a range has of one page. Body of device state: the payload, with what was at the same place of the checkpoint
//! before taken away (exclusive or).

mod cache;
mod codec;

use nbd_server::Epoch;

use crate::checkpoint_channel::{Frame, Kind, MAX_PAYLOAD_BYTES};
use cache::{PAGE, PageCache};
pub use codec::Compression;

/// Numbers before the body.
const HEADER: usize = 12;
/// A body is at most that much longer than a payload: one byte for each piece, and a piece has at least a byte.
const BODY_LIMIT: u64 = 2 * MAX_PAYLOAD_BYTES;

/// What stands for a piece.
const RAW: u8 = 0;
const ZEROS: u8 = 1;
const SAME: u8 = 2;
const DIFFERENCE: u8 = 3;

/// A packed frame that can't be restored. Like any damage it ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unpackable {
    /// Lengths and contents contradict each other.
    #[error("a packed frame is damaged")]
    Damaged,
    /// A difference to something that was never sent.
    #[error("a packed frame is a difference to a page that was not sent before")]
    Unknown,
    /// A compression of another version.
    #[error("a packed frame has the unknown compression {0}")]
    Codec(u32),
}

/// What both ends know of each other's past.
#[derive(Debug, Default)]
struct Past {
    pages: PageCache,
    device: DevicePast,
}

/// The device state of the checkpoint before, and of the one under way.
#[derive(Debug, Default)]
struct DevicePast {
    epoch: Epoch,
    before: Vec<u8>,
    current: Vec<u8>,
}

impl DevicePast {
    /// Where the next piece of `epoch` begins.
    fn begin(&mut self, epoch: Epoch) -> usize {
        if epoch != self.epoch {
            self.epoch = epoch;
            self.before = std::mem::take(&mut self.current);
        }
        self.current.len()
    }

    /// Takes away, or adds, what was there before.
    fn mix(&self, at: usize, piece: &mut [u8]) {
        let before = self.before.get(at..).unwrap_or_default();
        for (byte, before) in piece.iter_mut().zip(before) {
            *byte ^= before;
        }
    }
}

/// The end that sends. One for each connection.
#[derive(Debug)]
pub struct Packer {
    compression: Compression,
    past: Past,
    body: Vec<u8>,
}

/// The end that receives. One for each connection.
#[derive(Debug)]
pub struct Unpacker {
    past: Past,
}

impl Packer {
    /// Remembers as many pages as the other end does.
    pub fn new(compression: Compression, cache_pages: usize) -> Self {
        Self {
            compression,
            past: Past {
                pages: PageCache::new(cache_pages),
                ..Past::default()
            },
            body: Vec::new(),
        }
    }

    /// Packs a frame of pages or device state; others stay as they are. Frames have to be sent in the order in which they were
    /// packed.
    pub fn pack(&mut self, frame: Frame) -> Frame {
        self.body.clear();
        let kind = match frame.kind {
            Kind::BasePages => Kind::PackedBase,
            Kind::Pages => Kind::PackedPages,
            Kind::Device => Kind::PackedDevice,
            _ => return frame,
        };
        match frame.kind {
            Kind::Device => {
                let at = self.past.device.begin(frame.epoch);
                self.body.extend_from_slice(&frame.payload);
                self.past.device.mix(at, &mut self.body);
                self.past.device.current.extend_from_slice(&frame.payload);
            }
            _ => {
                let cache = (kind == Kind::PackedPages).then_some(&mut self.past.pages);
                if pack_pages(&frame.payload, cache, &mut self.body).is_none() {
                    // Not made by us: it goes as it is, and the other end learns as much from it.
                    return frame;
                }
            }
        }
        let (Ok(raw), Ok(length)) = (
            u32::try_from(frame.payload.len()),
            u32::try_from(self.body.len()),
        ) else {
            return frame;
        };
        let mut payload = vec![0; HEADER];
        let codec = codec::compress(self.compression, &self.body, &mut payload);
        for (at, number) in [codec, raw, length].into_iter().enumerate() {
            payload[at * 4..at * 4 + 4].copy_from_slice(&number.to_le_bytes());
        }
        Frame {
            kind,
            payload: payload.into(),
            ..frame
        }
    }
}

impl Unpacker {
    /// Remembers as many pages as the other end does.
    pub fn new(cache_pages: usize) -> Self {
        Self {
            past: Past {
                pages: PageCache::new(cache_pages),
                ..Past::default()
            },
        }
    }

    /// Restores a frame; one that is not packed stays as it is.
    ///
    /// # Errors
    /// It can't be restored. Nothing that comes after it can be, either.
    pub fn unpack(&mut self, frame: Frame) -> Result<Frame, Unpackable> {
        let kind = match frame.kind {
            Kind::PackedBase => Kind::BasePages,
            Kind::PackedPages => Kind::Pages,
            Kind::PackedDevice => Kind::Device,
            _ => return Ok(frame),
        };
        let number = |at: usize| -> Option<u32> {
            let bytes = frame.payload.get(at * 4..at * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let (Some(codec), Some(raw), Some(length)) = (number(0), number(1), number(2)) else {
            return Err(Unpackable::Damaged);
        };
        let (raw, length) = (raw as usize, length as usize);
        if raw as u64 > MAX_PAYLOAD_BYTES || length as u64 > BODY_LIMIT {
            return Err(Unpackable::Damaged);
        }
        let mut body = codec::decompress(codec, &frame.payload[HEADER..], length)?;
        let payload = if kind == Kind::Device {
            let at = self.past.device.begin(frame.epoch);
            self.past.device.mix(at, &mut body);
            self.past.device.current.extend_from_slice(&body);
            body
        } else {
            let cache = (kind == Kind::Pages).then_some(&mut self.past.pages);
            unpack_pages(&body, cache, raw)?
        };
        if payload.len() != raw {
            return Err(Unpackable::Damaged);
        }
        Ok(Frame {
            kind,
            payload: payload.into(),
            ..frame
        })
    }
}

/// The pieces of a table: the number of the page if it is a whole one, and its length. None if the table is cut short.
fn pieces(table: &[u8]) -> impl Iterator<Item = (Option<u64>, usize)> + '_ {
    const WHOLE: u64 = PAGE as u64;
    table.chunks_exact(16).flat_map(|entry| {
        let (offset, length) = entry.split_at(8);
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let (mut at, mut left) = (word(offset), word(length));
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let piece = left.min(WHOLE - at % WHOLE);
            let page = (piece == WHOLE).then_some(at / WHOLE);
            at = at.wrapping_add(piece);
            left -= piece;
            // At most a page.
            usize::try_from(piece).ok().map(|piece| (page, piece))
        })
    })
}

/// The table of a payload of pages, its length before it.
fn table(payload: &[u8]) -> Option<&[u8]> {
    let count = u64::from_le_bytes(payload.get(..8)?.try_into().ok()?);
    let bytes = usize::try_from(count).ok()?.checked_mul(16)?;
    payload.get(8..bytes.checked_add(8)?)
}

/// None if the payload is not one of pages.
fn pack_pages(payload: &[u8], mut cache: Option<&mut PageCache>, body: &mut Vec<u8>) -> Option<()> {
    let table = table(payload)?;
    let data = &payload[8 + table.len()..];
    let total: u64 = table
        .chunks_exact(16)
        .filter_map(|entry| Some(u64::from_le_bytes(entry[8..].try_into().ok()?)))
        .fold(0, u64::saturating_add);
    if total != data.len() as u64 {
        return None;
    }
    body.extend_from_slice(&payload[..8 + table.len()]);
    let tags = body.len();
    body.resize(tags + pieces(table).count(), RAW);
    let mut rest = data;
    for (index, (page, length)) in pieces(table).enumerate() {
        let (piece, later) = rest.split_at(length);
        rest = later;
        let known = match (page, cache.as_deref_mut()) {
            (Some(page), Some(cache)) => {
                let tag = cache.get(page).map(|known| against(known, piece, body));
                cache.put(page, piece);
                tag
            }
            _ => None,
        };
        let tag = known.unwrap_or_else(|| plain(piece, body));
        body[tags + index] = tag;
    }
    Some(())
}

/// A page of which the other end knows what it was.
fn against(known: &[u8], piece: &[u8], body: &mut Vec<u8>) -> u8 {
    let words = || known.chunks_exact(8).zip(piece.chunks_exact(8));
    let changed = words().filter(|(old, new)| old != new).count();
    if changed == 0 {
        return SAME;
    }
    // With most of it new, the page itself is more likely to be compressible than the difference.
    if changed > piece.len() / 16 {
        return plain(piece, body);
    }
    body.extend(known.iter().zip(piece).map(|(old, new)| old ^ new));
    DIFFERENCE
}

fn plain(piece: &[u8], body: &mut Vec<u8>) -> u8 {
    if piece.iter().all(|byte| *byte == 0) {
        return ZEROS;
    }
    body.extend_from_slice(piece);
    RAW
}

fn unpack_pages(
    body: &[u8],
    mut cache: Option<&mut PageCache>,
    raw: usize,
) -> Result<Vec<u8>, Unpackable> {
    let table = table(body).ok_or(Unpackable::Damaged)?;
    let mut payload = Vec::with_capacity(raw);
    payload.extend_from_slice(&body[..8 + table.len()]);
    // Before anything is counted or made: a table may claim far more than there is.
    let claimed = table
        .chunks_exact(16)
        .filter_map(|entry| Some(u64::from_le_bytes(entry[8..].try_into().ok()?)))
        .fold(payload.len() as u64, u64::saturating_add);
    if claimed != raw as u64 {
        return Err(Unpackable::Damaged);
    }
    let rest = &body[8 + table.len()..];
    let count = pieces(table).count();
    let (tags, mut rest) = rest.split_at_checked(count).ok_or(Unpackable::Damaged)?;
    for ((page, length), tag) in pieces(table).zip(tags) {
        let start = payload.len();
        let mut take = || {
            let (now, later) = rest.split_at_checked(length).ok_or(Unpackable::Damaged)?;
            rest = later;
            Ok(now)
        };
        match *tag {
            RAW => payload.extend_from_slice(take()?),
            ZEROS => payload.resize(start + length, 0),
            SAME | DIFFERENCE => {
                let known = match (page, cache.as_deref_mut()) {
                    (Some(page), Some(cache)) => cache.get(page),
                    _ => None,
                };
                payload.extend_from_slice(known.ok_or(Unpackable::Unknown)?);
                if *tag == DIFFERENCE {
                    for (byte, difference) in payload[start..].iter_mut().zip(take()?) {
                        *byte ^= difference;
                    }
                }
            }
            _ => return Err(Unpackable::Damaged),
        }
        if let (Some(page), Some(cache)) = (page, cache.as_deref_mut()) {
            cache.put(page, &payload[start..]);
        }
    }
    if !rest.is_empty() {
        return Err(Unpackable::Damaged);
    }
    Ok(payload)
}

#[cfg(test)]
mod tests;
