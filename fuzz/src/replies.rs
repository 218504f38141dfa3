//! Replies as a client reads them, written a second time from the NBD protocol document: simple ones, structured chunks, extended chunks.

use std::collections::HashMap;

use nbd_server::agreed::Headers;

/// What a request was, as far as its reply depends on it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Request type.
    pub kind: u16,
    /// Command flags.
    pub flags: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes that are asked for.
    pub length: u64,
    /// Ids of the metadata contexts that BLOCK_STATUS may answer.
    pub contexts: Vec<u32>,
}

/// READ.
pub const READ: u16 = 0;
/// BLOCK_STATUS.
pub const BLOCK_STATUS: u16 = 7;
const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;

/// The errors that the document has.
const ERRORS: [u32; 8] = [1, 5, 12, 22, 28, 75, 95, 108];

/// Reads all of `out` as replies to `asked` (by cookie), each of which may be answered once. Panics at anything that a client
/// could not take. Those that were answered are removed from `asked`; what is left in `out` is the beginning of a reply.
pub fn check<'a>(headers: Headers, mut out: &'a [u8], asked: &mut HashMap<u64, Asked>) -> &'a [u8] {
    let mut open: HashMap<u64, Open> = HashMap::new();
    while let Some(rest) = next(headers, out, asked, &mut open) {
        out = rest;
    }
    out
}

/// A reply of several chunks that is not at its end.
#[derive(Debug, Default)]
struct Open {
    /// Ranges of a read that have come.
    covered: Vec<(u64, u64)>,
    contexts: Vec<u32>,
    chunks: usize,
    failed: bool,
}

fn next<'a>(
    headers: Headers,
    out: &'a [u8],
    asked: &mut HashMap<u64, Asked>,
    open: &mut HashMap<u64, Open>,
) -> Option<&'a [u8]> {
    let mut reader = Reader(out);
    let magic = reader.number(4)?;
    match (headers, magic) {
        (Headers::Simple | Headers::Structured, 0x6744_6698) => {
            let error = u32::try_from(reader.number(4)?).unwrap();
            let cookie = reader.number(8)?;
            let request = asked.get(&cookie).expect("a reply to no request");
            let read = request.kind == READ;
            assert!(
                !(read && headers == Headers::Structured),
                "a simple reply to a read after structured replies were agreed on"
            );
            assert!(!open.contains_key(&cookie), "a simple reply within another");
            assert!(error == 0 || ERRORS.contains(&error), "error {error}");
            if read && error == 0 {
                reader.bytes(usize::try_from(request.length).unwrap())?;
            }
            asked.remove(&cookie);
        }
        (Headers::Structured, 0x668e_33ef) | (Headers::Extended, 0x6e8a_278c) => {
            let flags = reader.number(2)?;
            let kind = u16::try_from(reader.number(2)?).unwrap();
            let cookie = reader.number(8)?;
            let extended = headers == Headers::Extended;
            let offset = if extended {
                Some(reader.number(8)?)
            } else {
                None
            };
            let length = reader.number(if extended { 8 } else { 4 })?;
            assert!(length <= (32 << 20) + 8, "a chunk of {length} bytes");
            let payload = reader.bytes(usize::try_from(length).unwrap())?;
            let request = asked.get(&cookie).expect("a chunk for no request");
            assert!(offset.is_none_or(|offset| offset == request.offset));
            assert!(flags <= 1, "flags {flags}");
            let last = flags == 1;
            let state = open.entry(cookie).or_default();
            state.chunks += 1;
            chunk(kind, last, payload, request, headers, state);
            if last {
                let state = open.remove(&cookie).unwrap();
                let request = asked.remove(&cookie).unwrap();
                at_end(&request, state);
            }
        }
        _ => panic!("{magic:#x} begins no reply after {headers:?}"),
    }
    Some(reader.0)
}

fn chunk(
    kind: u16,
    last: bool,
    payload: &[u8],
    request: &Asked,
    headers: Headers,
    state: &mut Open,
) {
    let mut reader = Reader(payload);
    match kind {
        0 => assert!(last && payload.is_empty() && state.chunks == 1, "NONE"),
        1 | 2 => {
            assert_eq!(request.kind, READ, "data for no read");
            let start = reader.number(8).expect("an offset");
            let len = if kind == 1 {
                reader.0.len() as u64
            } else {
                reader.number(4).expect("a length")
            };
            assert!(kind == 1 || reader.0.is_empty());
            let end = start.checked_add(len).expect("no overflow");
            assert!(len > 0, "an empty chunk");
            let within = start >= request.offset && end <= request.offset + request.length;
            assert!(within, "a chunk beyond its read");
            let apart = |(from, to): &(u64, u64)| end <= *from || start >= *to;
            assert!(state.covered.iter().all(apart), "chunks overlap");
            state.covered.push((start, end));
        }
        5 | 6 => {
            assert_eq!(request.kind, BLOCK_STATUS, "a status for no BLOCK_STATUS");
            let extended = kind == 6;
            assert_eq!(extended, headers == Headers::Extended);
            let context = u32::try_from(reader.number(4).expect("a context")).unwrap();
            assert!(request.contexts.contains(&context), "context {context}");
            assert!(!state.contexts.contains(&context), "a context twice");
            state.contexts.push(context);
            let count = if extended { reader.number(4) } else { None };
            let width = if extended { 8 } else { 4 };
            let (mut extents, mut bytes) = (0, 0_u64);
            while !reader.0.is_empty() {
                let len = reader.number(width).expect("a length");
                reader.number(width).expect("flags");
                assert!(len > 0, "an empty extent");
                bytes = bytes.checked_add(len).expect("no overflow");
                extents += 1;
            }
            assert!(extents > 0 && count.is_none_or(|count| count == extents));
            assert!(request.flags & REQ_ONE == 0 || extents == 1, "REQ_ONE");
            assert!(bytes <= request.length, "extents beyond the request");
        }
        0x8001 | 0x8002 => {
            let error = u32::try_from(reader.number(4).expect("an error")).unwrap();
            assert!(ERRORS.contains(&error), "error {error}");
            let len = usize::try_from(reader.number(2).expect("a length")).unwrap();
            let message = reader.bytes(len).expect("a message");
            assert!(std::str::from_utf8(message).is_ok() && len <= 4096);
            if kind == 0x8002 {
                let at = reader.number(8).expect("an offset");
                assert!(at >= request.offset && at - request.offset < request.length);
            }
            assert!(reader.0.is_empty(), "an error with more behind it");
            state.failed = true;
        }
        _ => panic!("a chunk of kind {kind}"),
    }
}

/// A reply is whole.
fn at_end(request: &Asked, state: Open) {
    if state.failed {
        return;
    }
    match request.kind {
        READ => {
            let covered: u64 = state.covered.iter().map(|(from, to)| to - from).sum();
            assert_eq!(covered, request.length, "a read with gaps");
            assert!(request.flags & DF == 0 || state.chunks == 1, "DF");
        }
        BLOCK_STATUS => assert_eq!(state.contexts.len(), request.contexts.len()),
        _ => {}
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, len: usize) -> Option<u64> {
        Some(match *self.bytes(len)? {
            [a, b] => u16::from_be_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_be_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
            _ => panic!("no number has {len} bytes"),
        })
    }
}
