//! Makes sense of what a connection received: simple and structured replies, whose data is checked as it comes, sector by
//! sector, where it lies in the receive buffer. Does no I/O.

use anyhow::{Context, bail, ensure};
use nbd_server::protocol::{self as wire, WireReader};

use super::Mismatch;
use super::connection::{Connection, Kind, Slot};
use super::content::{Content, Depth, SECTOR};

/// Where in the stream of replies a connection is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Place {
    /// Before a header.
    #[default]
    Header,
    /// In the data of a read.
    Data {
        cookie: u64,
        offset: u64,
        left: usize,
        /// The read is answered when the data is there.
        last: bool,
    },
}

/// Takes all replies that are complete; calls `done` for each request that was answered.
pub(crate) fn take(
    connection: &mut Connection,
    place: &mut Place,
    content: &Content,
    verify: bool,
    mut done: impl FnMut(Slot),
) -> anyhow::Result<()> {
    loop {
        let before = connection.received().len();
        match *place {
            Place::Header => {
                if let Some(slot) = header(connection, place, content, verify)? {
                    done(slot);
                }
            }
            Place::Data {
                cookie,
                offset,
                left,
                last,
            } => {
                let used = data(connection, content, verify, cookie, offset, left)?;
                *place = if used < left {
                    Place::Data {
                        cookie,
                        offset: offset + used as u64,
                        left: left - used,
                        last,
                    }
                } else {
                    if last {
                        done(finish(connection, cookie)?);
                    }
                    Place::Header
                };
            }
        }
        let after = connection.received().len();
        if after == before || after == 0 {
            return Ok(());
        }
    }
}

/// Checks as many whole sectors as there are; returns the bytes consumed.
fn data(
    connection: &mut Connection,
    content: &Content,
    verify: bool,
    cookie: u64,
    offset: u64,
    left: usize,
) -> anyhow::Result<usize> {
    let full = connection.peek(cookie).is_some_and(|slot| slot.full);
    let there = connection.received();
    let mut used = left.min(there.len());
    if verify {
        used -= used % SECTOR;
        let depth = if full { Depth::Full } else { Depth::Ends };
        let part = there.get(..used).unwrap_or(&[]);
        content
            .check(part, offset, depth)
            .map_err(|offset| Mismatch {
                offset,
                version: content.version(offset),
            })?;
    }
    connection.consume(used);
    if let Some(slot) = connection.slot(cookie) {
        slot.left = slot.left.saturating_sub(used);
    }
    Ok(used)
}

/// The request of this cookie is answered.
fn finish(connection: &mut Connection, cookie: u64) -> anyhow::Result<Slot> {
    let slot = connection
        .finish(cookie)
        .context("the server answered a request that was not in flight")?;
    ensure!(
        slot.kind != Kind::Read || slot.left == 0,
        "the server left out {} bytes of a read at {}",
        slot.left,
        slot.offset
    );
    Ok(slot)
}

/// What begins a reply, if all of it is there. Returns the request that is answered by it alone.
fn header(
    connection: &mut Connection,
    place: &mut Place,
    content: &Content,
    verify: bool,
) -> anyhow::Result<Option<Slot>> {
    let mut reader = WireReader(connection.received());
    match reader.u32() {
        None => Ok(None),
        Some(wire::SIMPLE_REPLY_MAGIC) => {
            let Some((error, cookie)) = reader.u32().zip(reader.u64()) else {
                return Ok(None);
            };
            connection.consume(wire::SIMPLE_REPLY_LEN);
            let slot = in_flight(connection, cookie)?;
            ensure!(error == 0, "{}", failed(&slot, error));
            if slot.kind == Kind::Read {
                *place = Place::Data {
                    cookie,
                    offset: slot.offset,
                    left: slot.left,
                    last: true,
                };
                return Ok(None);
            }
            finish(connection, cookie).map(Some)
        }
        Some(wire::STRUCTURED_REPLY_MAGIC) => chunk(connection, place, verify.then_some(content)),
        Some(magic) => bail!("the server sent {magic:#010x} where a reply must begin"),
    }
}

/// The same for a structured reply. `checked`: what the disk holds, where it is to be looked at.
fn chunk(
    connection: &mut Connection,
    place: &mut Place,
    checked: Option<&Content>,
) -> anyhow::Result<Option<Slot>> {
    let mut reader = WireReader(connection.received());
    let Some(header) = reader.bytes(wire::CHUNK_HEADER_LEN) else {
        return Ok(None);
    };
    let mut fields = WireReader(header);
    let (_, flags, kind) = (fields.u32(), fields.u16(), fields.u16());
    let (cookie, len) = (fields.u64(), fields.u32());
    let (Some(flags), Some(kind), Some(cookie), Some(len)) = (flags, kind, cookie, len) else {
        return Ok(None);
    };
    let len = len as usize;
    let last = flags & wire::CHUNK_FLAG_DONE != 0;
    // What stands before the data; all of it where the chunk has no data.
    let fixed = match kind {
        wire::chunk::OFFSET_DATA => wire::CHUNK_OFFSET_LEN,
        _ => len,
    };
    ensure!(
        fixed <= len && fixed <= 4096,
        "a chunk of type {kind} with {len} bytes"
    );
    let Some(payload) = reader.bytes(fixed) else {
        return Ok(None);
    };
    let mut payload = WireReader(payload);
    let slot = in_flight(connection, cookie)?;
    match kind {
        wire::chunk::OFFSET_DATA => {
            let offset = payload.u64().unwrap_or(u64::MAX);
            let left = len - fixed;
            let inside = offset >= slot.offset && left <= slot.left;
            let aligned = offset.is_multiple_of(SECTOR as u64) && left.is_multiple_of(SECTOR);
            ensure!(
                inside && aligned,
                "a data chunk that the request did not ask for"
            );
            *place = Place::Data {
                cookie,
                offset,
                left,
                last,
            };
        }
        wire::chunk::OFFSET_HOLE => {
            let (offset, left) = (payload.u64(), payload.u32());
            let (offset, left) = (offset.unwrap_or(u64::MAX), left.unwrap_or(0) as usize);
            if let Some(content) = checked {
                // No version of a sector is zeros.
                let version = content.version(offset);
                return Err(Mismatch { offset, version }.into());
            }
            if let Some(slot) = connection.slot(cookie) {
                slot.left = slot.left.saturating_sub(left);
            }
        }
        wire::chunk::NONE => {}
        _ => bail!(failed(&slot, payload.u32().unwrap_or(0))),
    }
    connection.consume(wire::CHUNK_HEADER_LEN + fixed);
    if last && !matches!(place, Place::Data { .. }) {
        return finish(connection, cookie).map(Some);
    }
    Ok(None)
}

fn in_flight(connection: &Connection, cookie: u64) -> anyhow::Result<Slot> {
    connection
        .peek(cookie)
        .context("the server answered a request that was not in flight")
}

fn failed(slot: &Slot, error: u32) -> String {
    format!(
        "the server failed a {:?} of {} bytes at {} (NBD error {error})",
        slot.kind, slot.len, slot.offset
    )
}
