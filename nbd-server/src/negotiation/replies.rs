//! Option replies to bytes ("Option reply types").

use crate::agreed::Agreed;
use crate::export::{ExportInfo, ExportListing, OpenRefused};
use crate::protocol::{self, info, option, reply};

/// Appends one NBD_REP_SERVER per export, and the end of the list.
pub(super) fn put_list(out: &mut Vec<u8>, exports: &[ExportListing]) {
    for export in exports {
        let name = cut_string(&export.name);
        let mut data = Vec::with_capacity(4 + name.len() + export.description.len());
        data.extend_from_slice(&length_u32(name.len()).to_be_bytes());
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(cut_string(&export.description).as_bytes());
        put_reply(out, option::LIST, reply::SERVER, &data);
    }
    put_reply(out, option::LIST, reply::ACK, &[]);
}

/// Appends the metadata contexts that an option has found: their ids and names.
pub(super) fn put_contexts<'a>(
    out: &mut Vec<u8>,
    option: u32,
    contexts: impl Iterator<Item = (u32, &'a str)>,
) {
    for (id, name) in contexts {
        let mut data = id.to_be_bytes().to_vec();
        data.extend_from_slice(cut_string(name).as_bytes());
        put_reply(out, option, reply::META_CONTEXT, &data);
    }
    put_reply(out, option, reply::ACK, &[]);
}

/// Appends why an export can't be had.
pub(super) fn put_refusal(out: &mut Vec<u8>, option: u32, refused: &OpenRefused) {
    let kind = match refused {
        OpenRefused::Unknown(_) => reply::ERR_UNKNOWN,
        OpenRefused::Policy(_) => reply::ERR_POLICY,
        OpenRefused::Shutdown => reply::ERR_SHUTDOWN,
    };
    put_error(out, option, kind, &refused.to_string());
}

/// Appends the answer to INFO or GO for an export that can be had.
pub(super) fn put_description(
    out: &mut Vec<u8>,
    option: u32,
    name: &str,
    wanted: &[u16],
    export: &ExportInfo,
    agreed: &Agreed,
) {
    let mut data = Vec::with_capacity(14);
    data.extend_from_slice(&info::EXPORT.to_be_bytes());
    data.extend_from_slice(&export.size.to_be_bytes());
    data.extend_from_slice(&protocol::transmission_flags(export, agreed).to_be_bytes());
    put_reply(out, option, reply::INFO, &data);

    // "The server MAY ignore [..] and MAY send [..] not requested": the block sizes cost little and clients without them guess.
    data.clear();
    data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
    let sizes = export.block_size;
    let maximum = sizes.maximum.min(protocol::MAX_PAYLOAD);
    for size in [sizes.minimum, sizes.preferred, maximum] {
        data.extend_from_slice(&size.to_be_bytes());
    }
    put_reply(out, option, reply::INFO, &data);

    for (kind, text) in [
        (info::NAME, name),
        (info::DESCRIPTION, export.description.as_str()),
    ] {
        if wanted.contains(&kind) {
            data.clear();
            data.extend_from_slice(&kind.to_be_bytes());
            data.extend_from_slice(cut_string(text).as_bytes());
            put_reply(out, option, reply::INFO, &data);
        }
    }
    put_reply(out, option, reply::ACK, &[]);
}

pub(super) fn put_error(out: &mut Vec<u8>, option: u32, kind: u32, message: &str) {
    put_reply(out, option, kind, cut_string(message).as_bytes());
}

pub(super) fn put_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.reserve(protocol::OPTION_REPLY_HEADER_LEN + data.len());
    out.extend_from_slice(&protocol::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length_u32(data.len()).to_be_bytes());
    out.extend_from_slice(data);
}

/// Lengths here come from strings of at most [`protocol::MAX_STRING`] bytes.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Cuts a string to what the protocol allows, at the border of a character.
fn cut_string(text: &str) -> &str {
    let mut end = text.len().min(protocol::MAX_STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}
