//! The client's side of the NBD negotiation, blocking, over a unix socket: one option for structured replies, then
//! NBD_OPT_GO. Knows no requests.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail, ensure};
use nbd_server::protocol::{self as wire, WireReader};

use super::Target;

/// Longest option reply that is read; names and descriptions are far shorter.
const MAX_REPLY: u32 = 64 << 10;

/// A connection in the transmission phase.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The socket, blocking.
    pub stream: UnixStream,
    /// Size of the export in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
}

/// Connects and negotiates. `structured` asks for structured replies; a server that has none is no error.
pub(crate) fn connect(target: &Target, structured: bool) -> anyhow::Result<Attached> {
    let stream = UnixStream::connect(&target.socket)
        .with_context(|| format!("nothing serves NBD at {}", target.socket.display()))?;
    negotiate(stream, &target.export, structured)
        .with_context(|| format!("the NBD negotiation at {} failed", target.socket.display()))
}

fn negotiate(mut stream: UnixStream, export: &str, structured: bool) -> anyhow::Result<Attached> {
    let mut greeting = [0; wire::GREETING_LEN];
    stream.read_exact(&mut greeting)?;
    let mut reader = WireReader(&greeting);
    ensure!(
        reader.u64() == Some(wire::NBD_MAGIC) && reader.u64() == Some(wire::OPTION_MAGIC),
        "this is not an NBD server of the newstyle"
    );
    let flags = reader.u16().unwrap_or(0);
    ensure!(flags & wire::FIXED_NEWSTYLE != 0, "the server is too old");
    let mut answer = wire::C_FIXED_NEWSTYLE;
    if flags & wire::NO_ZEROES != 0 {
        answer |= wire::C_NO_ZEROES;
    }
    stream.write_all(&answer.to_be_bytes())?;
    if structured {
        send_option(&mut stream, wire::option::STRUCTURED_REPLY, &[])?;
        // A server that has none refuses, and then answers with simple replies.
        read_reply(&mut stream, wire::option::STRUCTURED_REPLY)?;
    }
    let mut data = Vec::new();
    data.extend(u32::try_from(export.len())?.to_be_bytes());
    data.extend(export.as_bytes());
    data.extend(0u16.to_be_bytes());
    send_option(&mut stream, wire::option::GO, &data)?;
    let mut found = None;
    loop {
        let (kind, data) = read_reply(&mut stream, wire::option::GO)?;
        let mut reader = WireReader(&data);
        match kind {
            wire::reply::ACK => break,
            wire::reply::INFO if reader.u16() == Some(wire::info::EXPORT) => {
                found = reader.u64().zip(reader.u16());
            }
            wire::reply::INFO => {}
            error => bail!(
                "the server refused export '{export}' (reply {error:#x}): {}",
                String::from_utf8_lossy(&data)
            ),
        }
    }
    let (size, flags) = found.context("the server did not say how large the export is")?;
    Ok(Attached {
        stream,
        size,
        flags,
    })
}

fn send_option(stream: &mut UnixStream, option: u32, data: &[u8]) -> anyhow::Result<()> {
    let mut bytes = Vec::with_capacity(wire::OPTION_HEADER_LEN + data.len());
    bytes.extend(wire::OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(u32::try_from(data.len())?.to_be_bytes());
    bytes.extend(data);
    Ok(stream.write_all(&bytes)?)
}

/// The type and data of the next reply to `option`.
fn read_reply(stream: &mut UnixStream, option: u32) -> anyhow::Result<(u32, Vec<u8>)> {
    let mut header = [0; wire::OPTION_REPLY_HEADER_LEN];
    stream.read_exact(&mut header)?;
    let mut reader = WireReader(&header);
    ensure!(
        reader.u64() == Some(wire::OPTION_REPLY_MAGIC) && reader.u32() == Some(option),
        "the server's option reply is malformed"
    );
    let kind = reader.u32().unwrap_or(0);
    let len = reader.u32().unwrap_or(0);
    ensure!(len <= MAX_REPLY, "an option reply of {len} bytes");
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}
