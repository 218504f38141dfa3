//! Answers that a worker makes out of more than one call to an export: reads with holes, and BLOCK_STATUS. It knows no socket.

use std::sync::Arc;

use super::changed;
use crate::agreed::{Contexts, MetaContext};
use crate::export::{Export, IoError, Since};
use crate::protocol::{
    EXTENDED_CHUNK_HEADER_LEN, MAX_STATUS_EXTENTS, STATE_CHANGED, STATE_HELD, state,
};
use crate::transmission::{
    Fragment, MAX_FRAGMENTS, MIN_SPARSE_READ, Request, Rules, StatusExtent, fit, fragments,
};

/// Bytes of a hole chunk with extended headers.
const MAX_HOLE: usize = EXTENDED_CHUNK_HEADER_LEN + 12;

/// The whole reply to a READ of `len` bytes. `fragment`: it may have holes and several chunks.
///
/// # Errors
/// When nothing of it could be read.
pub(super) fn read(
    export: &dyn Export,
    rules: &Rules,
    request: &Request,
    len: u32,
    fragment: bool,
) -> Result<Vec<u8>, IoError> {
    let offset = request.offset;
    if fragment && len >= MIN_SPARSE_READ {
        // Where holes are is a help only: without it all is data.
        if let Ok(extents) = export.block_status(offset, len.into(), MAX_FRAGMENTS)
            && let cut = fragments(offset, len, &extents)
            && cut.iter().any(|fragment| fragment.hole)
        {
            return read_fragments(export, rules, request, &cut);
        }
    }
    let head_len = rules.read_head_len();
    let mut reply = vec![0; head_len + len as usize];
    let (head, data) = reply.split_at_mut(head_len);
    export.read(offset, data)?;
    rules.put_read_head(head, request, len);
    Ok(reply)
}

fn read_fragments(
    export: &dyn Export,
    rules: &Rules,
    request: &Request,
    cut: &[Fragment],
) -> Result<Vec<u8>, IoError> {
    let data = cut.iter().filter(|fragment| !fragment.hole);
    let data: usize = data.map(|fragment| fragment.len as usize).sum();
    let mut reply = Vec::with_capacity(data + cut.len() * rules.read_head_len().max(MAX_HOLE));
    for (index, fragment) in cut.iter().enumerate() {
        let last = index + 1 == cut.len();
        let Fragment { offset, len, hole } = *fragment;
        if hole {
            rules.put_hole(&mut reply, request, offset, len, last);
            continue;
        }
        let before = reply.len();
        rules.put_data_head(&mut reply, request, offset, len, last);
        let start = reply.len();
        reply.resize(start + len as usize, 0);
        let read = export.read(offset, reply.get_mut(start..).unwrap_or_default());
        match read {
            Ok(()) => {}
            Err(error) if index == 0 => return Err(error),
            Err(error) => {
                reply.truncate(before);
                rules.put_error_at(&mut reply, request, error, offset);
                break;
            }
        }
    }
    Ok(reply)
}

/// What the answer to a BLOCK_STATUS about so many contexts may take: 16 bytes per extent for each of them.
pub(super) fn max_status_reply(contexts: Contexts) -> usize {
    contexts.len() * 16 * MAX_STATUS_EXTENTS
}

/// The whole reply to a BLOCK_STATUS: one chunk per context. `points`: of the contexts with a point in time, by their slots.
///
/// # Errors
/// When the export can't say.
pub(super) fn block_status(
    export: &dyn Export,
    points: &[Arc<dyn Since>],
    rules: &Rules,
    request: &Request,
    len: u64,
    one: bool,
    contexts: Contexts,
) -> Result<Vec<u8>, IoError> {
    let offset = request.offset;
    let max = if one { 1 } else { MAX_STATUS_EXTENTS };
    let mut reply = Vec::new();
    let last = contexts.iter().next_back();
    for context in contexts.iter() {
        let extents = match context {
            MetaContext::Allocation => {
                let extents = export.block_status(offset, len, max)?;
                let flags = |hole, zero| {
                    (if hole { state::HOLE } else { 0 }) | (if zero { state::ZERO } else { 0 })
                };
                let extents = extents.iter().map(|extent| StatusExtent {
                    len: extent.len,
                    flags: flags(extent.hole, extent.zero),
                });
                fit(extents, len, one)
            }
            MetaContext::Held => {
                let extents = export.held_status(offset, len, max)?;
                let extents = extents.iter().map(|extent| StatusExtent {
                    len: extent.len,
                    flags: if extent.held { STATE_HELD } else { 0 },
                });
                fit(extents, len, one)
            }
            MetaContext::Changed(slot) => {
                // A slot is given out with its point.
                let since = points.get(slot.index()).ok_or(IoError::Inval)?;
                let extents = changed::since(export, since.as_ref(), offset, len, max)?;
                let extents = extents.into_iter().map(|(len, changed)| StatusExtent {
                    len,
                    flags: if changed { STATE_CHANGED } else { 0 },
                });
                fit(extents, len, one)
            }
        };
        rules.put_status(
            &mut reply,
            request,
            context,
            &extents,
            Some(context) == last,
        );
    }
    Ok(reply)
}
