//! The client's side of the negotiation: structured replies, metadata contexts, the export.

use std::io;

use nbd_server::protocol::{self as wire, WireReader};

use super::Socket;
use super::replies::garbled;

/// Longest option reply that is taken, in bytes.
const MOST_REPLY: u32 = 64 << 10;
/// Most replies to one option.
const MOST_REPLIES: usize = 4096;

pub(super) struct Agreed {
    pub size: u64,
    pub contexts: Vec<(String, u32)>,
}

pub(super) fn attach(
    socket: &mut dyn Socket,
    export: &str,
    contexts: &[String],
) -> io::Result<Agreed> {
    let mut greeting = [0; wire::GREETING_LEN];
    socket.read_exact(&mut greeting)?;
    let mut reader = WireReader(&greeting);
    if reader.u64() != Some(wire::NBD_MAGIC) || reader.u64() != Some(wire::OPTION_MAGIC) {
        return Err(garbled("this is no NBD server"));
    }
    let flags = reader.u16().unwrap_or(0);
    if flags & wire::FIXED_NEWSTYLE == 0 || flags & wire::NO_ZEROES == 0 {
        return Err(garbled("this NBD server is too old"));
    }
    socket.write_all(&(wire::C_FIXED_NEWSTYLE | wire::C_NO_ZEROES).to_be_bytes())?;
    ask(socket, wire::option::STRUCTURED_REPLY, &[], |_, _| Ok(()))?;
    let mut granted = Vec::new();
    if !contexts.is_empty() {
        let mut data = string(export)?;
        data.extend(length(contexts.len())?.to_be_bytes());
        for context in contexts {
            data.extend(string(context)?);
        }
        ask(
            socket,
            wire::option::SET_META_CONTEXT,
            &data,
            |kind, data| {
                let mut reader = WireReader(data);
                let id = reader.u32().filter(|_| kind == wire::reply::META_CONTEXT);
                let id = id.ok_or_else(|| garbled("a metadata context without a number"))?;
                granted.push((String::from_utf8_lossy(reader.0).into_owned(), id));
                Ok(())
            },
        )?;
    }
    let mut data = string(export)?;
    data.extend(0u16.to_be_bytes());
    let mut size = None;
    ask(socket, wire::option::GO, &data, |kind, data| {
        let mut reader = WireReader(data);
        if kind == wire::reply::INFO && reader.u16() == Some(wire::info::EXPORT) {
            size = reader.u64();
        }
        Ok(())
    })?;
    Ok(Agreed {
        size: size.ok_or_else(|| garbled("it does not say how large the disk is"))?,
        contexts: granted,
    })
}

/// Sends an option and takes its replies up to the acknowledgement.
fn ask(
    socket: &mut dyn Socket,
    option: u32,
    data: &[u8],
    mut each: impl FnMut(u32, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(wire::OPTION_HEADER_LEN + data.len());
    bytes.extend(wire::OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(length(data.len())?.to_be_bytes());
    bytes.extend(data);
    socket.write_all(&bytes)?;
    for _ in 0..MOST_REPLIES {
        let mut header = [0; wire::OPTION_REPLY_HEADER_LEN];
        socket.read_exact(&mut header)?;
        let mut reader = WireReader(&header);
        let begins = reader.u64() == Some(wire::OPTION_REPLY_MAGIC) && reader.u32() == Some(option);
        let (kind, len) = (reader.u32().unwrap_or(0), reader.u32().unwrap_or(u32::MAX));
        if !begins || len > MOST_REPLY {
            return Err(garbled("an option is not answered as it must be"));
        }
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        socket.read_exact(&mut data)?;
        match kind {
            wire::reply::ACK => return Ok(()),
            wire::reply::ERR_TLS_REQD => {
                return Err(io::Error::other(
                    "the gateway wants TLS there; use its unix socket: --nbd unix:PATH",
                ));
            }
            kind if kind & (1 << 31) != 0 => {
                let why = String::from_utf8_lossy(&data);
                return Err(io::Error::other(format!("the gateway refuses: {why}")));
            }
            kind => each(kind, &data)?,
        }
    }
    Err(garbled("it answers without end"))
}

fn string(text: &str) -> io::Result<Vec<u8>> {
    let mut bytes = length(text.len())?.to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

fn length(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput.into())
}
