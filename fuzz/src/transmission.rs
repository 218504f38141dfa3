//! Requests: whatever bytes come, what the rules let through is within what was advertised and agreed on, what they refuse leaves the
//! stream in step, and each reply is one that a client can take.
//!
//! Input: four bytes that choose the export and what was agreed on, then the client's bytes. Of the third byte the rest of a division
//! by three chooses the headers, the two highest bits and those from the third lowest on the contexts.

use std::collections::HashMap;

use nbd_server::agreed::{Agreed, Contexts, Headers, MetaContext};
use nbd_server::export::{BlockExtent, BlockSize, ExportInfo, IoError};
use nbd_server::protocol::MAX_PAYLOAD;
use nbd_server::transmission::{Operation, Request, Rules, StatusExtent, fit, fragments};

use crate::replies::{self, Asked};

/// Larger replies cost time and show nothing new.
const MAX_REPLY: u32 = 1 << 16;
/// Bytes of replies after which an input has shown what it can.
const MAX_REPLIES: usize = 256 << 10;

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&plan, mut stream)) = data.split_first_chunk::<4>() else {
        return;
    };
    let info = export(plan);
    let agreed = agreed(plan[2]);
    let rules = Rules::new(info.clone(), agreed);
    let mut size = info.size;
    let mut out = Vec::new();
    let mut asked = HashMap::new();
    let mut answered = 0;
    while let Ok(Some(request)) = rules.parse(stream) {
        let head = agreed.headers.request_len();
        let payload_len = request.payload_len as usize;
        assert!(agreed.headers != Headers::Extended || request.payload_len <= MAX_PAYLOAD);
        let Some(payload) = stream.get(head..head + payload_len) else {
            break;
        };
        stream = &stream[head + payload_len..];
        if asked.contains_key(&request.cookie) {
            continue;
        }
        let operation = rules.check(&request, payload);
        if let Ok(operation) = &operation {
            allowed(&info, agreed, size, &request, operation);
        }
        if let Ok(Operation::Resize { size: wanted }) = operation {
            size = wanted;
            rules.resized(size);
        }
        if matches!(operation, Ok(Operation::Disconnect)) {
            break;
        }
        let expected = describe(&request, &operation);
        asked.insert(request.cookie, expected);
        answer(&mut out, &rules, &request, operation, plan[3]);
        // One by one, so that a cookie can be used again.
        let left = replies::check(agreed.headers, &out, &mut asked);
        assert!(left.is_empty() && asked.is_empty(), "no whole reply");
        answered += out.len();
        out.clear();
        if answered > MAX_REPLIES {
            break;
        }
    }
}

fn export(plan: [u8; 4]) -> ExportInfo {
    let bit = |bit: u8| plan[0] & 1 << bit != 0;
    ExportInfo {
        read_only: bit(0),
        can_flush: !bit(1),
        can_trim: !bit(2),
        can_zeroes: !bit(3),
        can_fua: !bit(4),
        can_fast_zero: !bit(5),
        can_cache: !bit(6),
        can_resize: bit(7),
        block_size: BlockSize {
            minimum: 1 << (plan[1] >> 4),
            preferred: 1 << 15,
            maximum: 1 << (15 + (plan[1] >> 4)),
        },
        ..ExportInfo::full(
            [1, 4096, 1 << 20, 5 << 32, u64::MAX >> 1][usize::from(plan[1] & 15) % 5],
        )
    }
}

fn agreed(plan: u8) -> Agreed {
    let headers = [Headers::Simple, Headers::Structured, Headers::Extended][usize::from(plan) % 3];
    let mut contexts = Contexts::default();
    for (bit, context) in [6, 7, 2, 3, 4, 5].into_iter().zip(MetaContext::all()) {
        // They need replies of several chunks.
        if plan & 1 << bit != 0 && headers.chunked() {
            contexts.insert(context);
        }
    }
    Agreed { headers, contexts }
}

/// Asserts that an operation is within what was advertised and agreed on.
fn allowed(info: &ExportInfo, agreed: Agreed, size: u64, request: &Request, operation: &Operation) {
    let within = |offset: u64, len: u64| {
        assert!(len > 0 && offset.checked_add(len).is_some_and(|end| end <= size));
        assert_eq!((offset, request.offset), (request.offset, offset));
        let block = u64::from(info.block_size.minimum);
        assert!(offset.is_multiple_of(block) && len.is_multiple_of(block));
    };
    let writes = |fua: bool| {
        assert!(!info.read_only, "a change to a read-only export");
        assert!(!fua || info.can_fua);
        assert_eq!(fua, request.flags & 1 != 0);
    };
    assert_eq!(request.flags & !0x3f, 0, "unknown flags");
    let largest = info.block_size.maximum.min(MAX_PAYLOAD);
    match *operation {
        Operation::Read {
            offset,
            len,
            fragment,
        } => {
            within(offset, len.into());
            assert!(len <= largest && !(fragment && agreed.headers == Headers::Simple));
        }
        Operation::Write { offset, len, fua } => {
            within(offset, len.into());
            writes(fua);
            assert!(len <= largest && len == request.payload_len);
        }
        Operation::Flush => assert!(info.can_flush),
        Operation::Trim { offset, len, fua } => {
            within(offset, len);
            writes(fua);
            assert!(info.can_trim);
        }
        Operation::WriteZeroes {
            offset,
            len,
            fast,
            fua,
            ..
        } => {
            within(offset, len);
            writes(fua);
            assert!(info.can_zeroes && (!fast || info.can_fast_zero));
        }
        Operation::Cache { offset, len } => {
            within(offset, len);
            assert!(info.can_cache);
        }
        Operation::BlockStatus {
            offset,
            len,
            contexts,
            ..
        } => {
            within(offset, len);
            assert!(agreed.headers.chunked() && !contexts.is_empty());
            assert!(
                contexts
                    .iter()
                    .all(|context| agreed.contexts.contains(context))
            );
        }
        Operation::Resize { size } => assert!(info.can_resize && !info.read_only && size > 0),
        Operation::Nothing => assert_eq!(request.length, 0),
        Operation::Disconnect => {}
    }
}

fn describe(request: &Request, operation: &Result<Operation, IoError>) -> Asked {
    let (length, contexts) = match operation {
        Ok(Operation::BlockStatus { len, contexts, .. }) => {
            (*len, contexts.iter().map(MetaContext::id).collect())
        }
        _ => (request.length, Vec::new()),
    };
    Asked {
        kind: request.kind,
        flags: request.flags,
        offset: request.offset,
        length,
        contexts,
    }
}

/// Puts the reply that an export with holes would bring.
fn answer(
    out: &mut Vec<u8>,
    rules: &Rules,
    request: &Request,
    operation: Result<Operation, IoError>,
    holes: u8,
) {
    let extents = |len: u64| {
        let step = 1 + u64::from(holes) * 97;
        let count = len.div_ceil(step).min(40);
        (0..count).map(move |index| BlockExtent {
            len: step,
            hole: index % 2 == 0,
            zero: index % 3 == 0,
        })
    };
    match operation {
        Ok(Operation::Read { len, .. }) if len > MAX_REPLY => {
            rules.put_outcome(out, request, Err(IoError::Io));
        }
        Ok(Operation::Read {
            offset,
            len,
            fragment: true,
        }) => {
            let extents: Vec<_> = extents(len.into()).collect();
            let cut = fragments(offset, len, &extents);
            let failing = usize::from(holes) % 5;
            for (index, fragment) in cut.iter().enumerate() {
                let last = index + 1 == cut.len();
                if fragment.hole {
                    rules.put_hole(out, request, fragment.offset, fragment.len, last);
                } else if index > 0 && index == failing {
                    rules.put_error_at(out, request, IoError::Io, fragment.offset);
                    return;
                } else {
                    rules.put_data_head(out, request, fragment.offset, fragment.len, last);
                    out.resize(out.len() + fragment.len as usize, 0);
                }
            }
        }
        Ok(Operation::Read { len, .. }) => {
            let mut head = vec![0; rules.read_head_len()];
            rules.put_read_head(&mut head, request, len);
            out.extend(head);
            out.resize(out.len() + len as usize, 0);
        }
        Ok(Operation::BlockStatus {
            len, one, contexts, ..
        }) => {
            let last = contexts.iter().next_back();
            for context in contexts.iter() {
                let extents = extents(len).map(|extent| StatusExtent {
                    len: extent.len,
                    flags: u32::from(extent.zero),
                });
                let extents = fit(extents, len, one);
                rules.put_status(out, request, context, &extents, Some(context) == last);
            }
        }
        outcome => rules.put_outcome(out, request, outcome.map(drop)),
    }
}
