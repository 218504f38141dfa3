//! The data of options to values ("Option types"). `None` is malformed; nothing is looked up here.

use crate::protocol::{self, WireReader};

/// The data of INFO and GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InfoData {
    pub name: String,
    /// Information types.
    pub wanted: Vec<u16>,
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContextData {
    pub name: String,
    pub queries: Vec<String>,
}

/// A name: UTF-8, and no longer than strings may be.
pub(super) fn name(data: &[u8]) -> Option<String> {
    if data.len() > protocol::MAX_STRING {
        return None;
    }
    std::str::from_utf8(data).ok().map(str::to_owned)
}

fn string(reader: &mut WireReader<'_>) -> Option<String> {
    let length = reader.u32()?;
    name(reader.bytes(length as usize)?)
}

/// "NBD_OPT_INFO and NBD_OPT_GO": length and bytes of the name, count and list of the information types.
pub(super) fn info(data: &[u8]) -> Option<InfoData> {
    let mut reader = WireReader(data);
    let name = string(&mut reader)?;
    let count = reader.u16()?;
    if reader.0.len() != usize::from(count) * 2 {
        return None;
    }
    let wanted = std::iter::from_fn(|| reader.u16()).collect();
    Some(InfoData { name, wanted })
}

/// "NBD_OPT_LIST_META_CONTEXT": length and bytes of the name, count of the queries, length and bytes of each.
pub(super) fn contexts(data: &[u8]) -> Option<ContextData> {
    let mut reader = WireReader(data);
    let name = string(&mut reader)?;
    let count = reader.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        // A count that is a lie ends here: every query takes its length from what the client has sent.
        queries.push(string(&mut reader)?);
    }
    reader.0.is_empty().then_some(ContextData { name, queries })
}
