//! Replies to bytes, in the form that was agreed on ("Simple reply message", "Structured reply chunk message", and "Extended reply chunk
//! message" of the extension EXTENDED_HEADERS).

use super::request::Request;
use super::rules::Rules;
use super::status::StatusExtent;
use crate::agreed::{Headers, MetaContext};
use crate::export::IoError;
use crate::protocol::{self, chunk, command};

/// Bytes of an id of a context, of a count of extents, or of an error number.
const U32_LEN: usize = 4;

impl Rules {
    /// Bytes before the data of a successful READ that is answered in one piece.
    pub fn read_head_len(&self) -> usize {
        match self.agreed.headers {
            Headers::Simple => protocol::SIMPLE_REPLY_LEN,
            Headers::Structured => protocol::CHUNK_HEADER_LEN + protocol::CHUNK_OFFSET_LEN,
            Headers::Extended => protocol::EXTENDED_CHUNK_HEADER_LEN + protocol::CHUNK_OFFSET_LEN,
        }
    }

    /// Writes what stands before the `len` bytes of a successful READ into `head`, which is [`Rules::read_head_len`] bytes long.
    pub fn put_read_head(&self, head: &mut [u8], request: &Request, len: u32) {
        let offset = request.offset.to_be_bytes();
        // The length is at most MAX_PAYLOAD: no overflow.
        let payload = len + 8;
        match self.agreed.headers {
            Headers::Simple => fill(head, &[&simple_reply(request.cookie, None)]),
            Headers::Structured => {
                let header = compact_header(chunk::OFFSET_DATA, true, request, payload);
                fill(head, &[&header, &offset]);
            }
            Headers::Extended => {
                let header = extended_header(chunk::OFFSET_DATA, true, request, payload);
                fill(head, &[&header, &offset]);
            }
        }
    }

    /// Appends what stands before `len` bytes of data from `offset`, which follow as part of the reply to a READ. `last`: nothing comes after
    /// them.
    pub fn put_data_head(
        &self,
        out: &mut Vec<u8>,
        request: &Request,
        offset: u64,
        len: u32,
        last: bool,
    ) {
        self.put_header(out, chunk::OFFSET_DATA, last, request, len + 8);
        out.extend_from_slice(&offset.to_be_bytes());
    }

    /// Appends a hole of `len` bytes at `offset` as part of the reply to a READ.
    pub fn put_hole(
        &self,
        out: &mut Vec<u8>,
        request: &Request,
        offset: u64,
        len: u32,
        last: bool,
    ) {
        self.put_header(out, chunk::OFFSET_HOLE, last, request, 12);
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
    }

    /// Appends the end of the reply to a READ that failed at `offset`; what stands before is good.
    pub fn put_error_at(&self, out: &mut Vec<u8>, request: &Request, error: IoError, offset: u64) {
        let message = error.to_string();
        let (message, message_len) = short(&message);
        let payload = u32::from(message_len) + 14;
        self.put_header(out, chunk::ERROR_OFFSET, true, request, payload);
        out.extend_from_slice(&protocol::error_number(error).to_be_bytes());
        out.extend_from_slice(&message_len.to_be_bytes());
        out.extend_from_slice(message);
        out.extend_from_slice(&offset.to_be_bytes());
    }

    /// Appends the extents of one context as part of the reply to a BLOCK_STATUS. They have been through [`super::fit`].
    pub fn put_status(
        &self,
        out: &mut Vec<u8>,
        request: &Request,
        context: MetaContext,
        extents: &[StatusExtent],
        last: bool,
    ) {
        let extended = self.agreed.headers == Headers::Extended;
        let count = u32::try_from(extents.len()).unwrap_or(u32::MAX);
        let (kind, head, each) = if extended {
            (chunk::BLOCK_STATUS_EXT, 2 * U32_LEN, 4 * U32_LEN)
        } else {
            (chunk::BLOCK_STATUS, U32_LEN, 2 * U32_LEN)
        };
        // At most MAX_STATUS_EXTENTS.
        let payload = u32::try_from(head + each * extents.len()).unwrap_or(u32::MAX);
        self.put_header(out, kind, last, request, payload);
        out.extend_from_slice(&context.id().to_be_bytes());
        if extended {
            out.extend_from_slice(&count.to_be_bytes());
        }
        for extent in extents {
            if extended {
                out.extend_from_slice(&extent.len.to_be_bytes());
                out.extend_from_slice(&u64::from(extent.flags).to_be_bytes());
            } else {
                let len = u32::try_from(extent.len).unwrap_or(u32::MAX);
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&extent.flags.to_be_bytes());
            }
        }
    }

    /// Appends the whole reply to a request that has no data to bring back: its success, or its error.
    pub fn put_outcome(&self, out: &mut Vec<u8>, request: &Request, outcome: Result<(), IoError>) {
        match (self.agreed.headers, outcome) {
            (Headers::Simple, outcome) => {
                out.extend_from_slice(&simple_reply(request.cookie, outcome.err()));
            }
            // "MUST NOT use a simple reply for NBD_CMD_READ"; the others may stay simple.
            (Headers::Structured, Ok(())) if request.kind != command::READ => {
                out.extend_from_slice(&simple_reply(request.cookie, None));
            }
            (_, Ok(())) => self.put_header(out, chunk::NONE, true, request, 0),
            (_, Err(error)) => {
                let message = error.to_string();
                let (message, message_len) = short(&message);
                let payload = u32::from(message_len) + 6;
                self.put_header(out, chunk::ERROR, true, request, payload);
                out.extend_from_slice(&protocol::error_number(error).to_be_bytes());
                out.extend_from_slice(&message_len.to_be_bytes());
                out.extend_from_slice(message);
            }
        }
    }

    /// Chunks exist in two of the forms only; where replies are simple the callers don't get here.
    fn put_header(&self, out: &mut Vec<u8>, kind: u16, last: bool, request: &Request, len: u32) {
        if self.agreed.headers == Headers::Extended {
            out.extend_from_slice(&extended_header(kind, last, request, len));
        } else {
            out.extend_from_slice(&compact_header(kind, last, request, len));
        }
    }
}

/// A message for people, as far as its length can be told.
fn short(message: &str) -> (&[u8], u16) {
    let len = u16::try_from(message.len()).unwrap_or(0);
    let bytes = message.as_bytes().get(..len.into()).unwrap_or_default();
    (bytes, len)
}

fn simple_reply(cookie: u64, error: Option<IoError>) -> [u8; protocol::SIMPLE_REPLY_LEN] {
    let mut reply = [0; protocol::SIMPLE_REPLY_LEN];
    let number = error.map_or(0, protocol::error_number);
    let magic = protocol::SIMPLE_REPLY_MAGIC.to_be_bytes();
    fill(
        &mut reply,
        &[&magic, &number.to_be_bytes(), &cookie.to_be_bytes()],
    );
    reply
}

fn flags(last: bool) -> [u8; 2] {
    if last {
        protocol::CHUNK_FLAG_DONE.to_be_bytes()
    } else {
        [0; 2]
    }
}

fn compact_header(
    kind: u16,
    last: bool,
    request: &Request,
    payload: u32,
) -> [u8; protocol::CHUNK_HEADER_LEN] {
    let magic = protocol::STRUCTURED_REPLY_MAGIC;
    chunk_header(magic, kind, last, request, &payload.to_be_bytes())
}

fn extended_header(
    kind: u16,
    last: bool,
    request: &Request,
    payload: u32,
) -> [u8; protocol::EXTENDED_CHUNK_HEADER_LEN] {
    let mut rest = [0; 16];
    // "MUST match the offset of the client's request", whatever stands in the payload.
    let offset = request.offset.to_be_bytes();
    fill(&mut rest, &[&offset, &u64::from(payload).to_be_bytes()]);
    chunk_header(protocol::EXTENDED_REPLY_MAGIC, kind, last, request, &rest)
}

/// What both forms have in common, and then the `rest`.
fn chunk_header<const LEN: usize>(
    magic: u32,
    kind: u16,
    last: bool,
    request: &Request,
    rest: &[u8],
) -> [u8; LEN] {
    let mut header = [0; LEN];
    let (magic, kind) = (magic.to_be_bytes(), kind.to_be_bytes());
    let cookie = request.cookie.to_be_bytes();
    fill(&mut header, &[&magic, &flags(last), &kind, &cookie, rest]);
    header
}

/// Copies the parts one after another into `target`, as far as there is room.
fn fill(mut target: &mut [u8], parts: &[&[u8]]) {
    for part in parts {
        let Some((slot, rest)) = target.split_at_mut_checked(part.len()) else {
            return;
        };
        slot.copy_from_slice(part);
        target = rest;
    }
}
