//! The handshake of an NBD client: fixed newstyle, NBD_OPT_GO, without structured replies ("Negotiation"). No state beyond one connection.

use std::io::{self, Read, Write};

use super::{
    C_FIXED_NEWSTYLE, C_NO_ZEROES, EXPORT_NAME_PADDING, FIXED_NEWSTYLE, NBD_MAGIC, NO_ZEROES,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, Stream, WireReader, info, option, reply, transmission_flag,
};

/// Most bytes of an option reply that are read; none that matters is longer.
const MOST: u32 = 64 << 10;

/// What a server says of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    /// In bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
}

/// An error about a peer that does not speak as agreed.
pub(super) fn garbled(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server does not keep to the NBD protocol: {what}"),
    )
}

fn read<const N: usize>(stream: &mut Stream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Attaches to an export.
///
/// # Errors
/// What the server says, in its own words where it has some.
pub(super) fn attach(stream: &mut Stream, export: &str) -> io::Result<Export> {
    let greeting = read::<18>(stream)?;
    let mut greeting = WireReader(&greeting);
    if (greeting.u64(), greeting.u64()) != (Some(NBD_MAGIC), Some(OPTION_MAGIC)) {
        return Err(garbled("its greeting is none, or one of before 2012"));
    }
    let flags = greeting.u16().unwrap_or_default();
    if flags & FIXED_NEWSTYLE == 0 {
        return Err(garbled("it can't negotiate (fixed newstyle)"));
    }
    let mut client = C_FIXED_NEWSTYLE;
    if flags & NO_ZEROES != 0 {
        client |= C_NO_ZEROES;
    }
    let mut hello = client.to_be_bytes().to_vec();
    let mut data = u32::try_from(export.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes()
        .to_vec();
    data.extend(export.as_bytes());
    // No information is asked for beyond what comes by itself.
    data.extend([0, 0]);
    hello.extend(option(option::GO, &data));
    stream.write_all(&hello)?;
    let mut found = None;
    loop {
        let head = read::<20>(stream)?;
        let mut head = WireReader(&head);
        let (magic, kind) = (head.u64(), head.u32());
        let (Some(OPTION_REPLY_MAGIC), Some(option::GO)) = (magic, kind) else {
            return Err(garbled("an answer belongs to no option"));
        };
        let kind = head.u32().unwrap_or_default();
        let len = head.u32().filter(|len| *len <= MOST);
        let len = len.ok_or_else(|| garbled("an answer is too long"))?;
        let mut data = vec![0; usize::try_from(len).unwrap_or_default()];
        stream.read_exact(&mut data)?;
        match kind {
            reply::INFO => found = export_of(&data).or(found),
            reply::ACK => return found.ok_or_else(|| garbled("it says no size")),
            reply::ERR_UNSUP => return by_name(stream, export, flags & NO_ZEROES != 0),
            refused => return Err(refusal(refused, export, &data)),
        }
    }
}

fn export_of(data: &[u8]) -> Option<Export> {
    let mut data = WireReader(data);
    if data.u16()? != info::EXPORT {
        return None;
    }
    Some(Export {
        size: data.u64()?,
        flags: data.u16()?,
    })
}

/// What servers have that do not know NBD_OPT_GO.
fn by_name(stream: &mut Stream, export: &str, short: bool) -> io::Result<Export> {
    stream.write_all(&option(option::EXPORT_NAME, export.as_bytes()))?;
    let answer = read::<10>(stream)?;
    let mut answer = WireReader(&answer);
    let found = Export {
        size: answer.u64().unwrap_or_default(),
        flags: answer.u16().unwrap_or_default(),
    };
    if !short {
        read::<EXPORT_NAME_PADDING>(stream)?;
    }
    Ok(found)
}

fn refusal(kind: u32, export: &str, data: &[u8]) -> io::Error {
    let what = match kind {
        reply::ERR_UNKNOWN => format!("the server has no export '{export}'"),
        reply::ERR_TLS_REQD => {
            "the server wants TLS, which is not spoken to a server below".to_owned()
        }
        reply::ERR_POLICY => format!("the server does not let us attach to '{export}'"),
        reply::ERR_SHUTDOWN => "the server is stopping".to_owned(),
        other => format!("the server refuses to attach us to '{export}' (reply {other:#x})"),
    };
    let said = String::from_utf8_lossy(data);
    let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
    io::Error::other(match said.is_empty() {
        true => what,
        false => format!("{what}: {said}"),
    })
}

/// Whether an export can be used, and is the one that it was.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(first: Export, now: Export, read_only: bool) -> io::Result<()> {
    if now.size == 0 {
        return Err(io::Error::other("the export has no bytes"));
    }
    if now.size != first.size {
        return Err(io::Error::other(format!(
            "the export has {} bytes now, and had {} when it was opened; is it another one?",
            now.size, first.size
        )));
    }
    if read_only {
        return Ok(());
    }
    if now.flags & transmission_flag::READ_ONLY != 0 {
        return Err(io::Error::other(
            "the server exports it read-only; make it writable there, or set read_only = true here",
        ));
    }
    if now.flags & transmission_flag::SEND_FLUSH == 0 {
        return Err(io::Error::other(
            "the server offers no flush, so nothing that is written could be called durable",
        ));
    }
    if first.flags & !now.flags != 0 {
        return Err(io::Error::other(
            "the server offers less than it did when the export was opened; is it another one?",
        ));
    }
    Ok(())
}
