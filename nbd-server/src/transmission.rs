//! Requests and replies after the handshake (NBD protocol, "Transmission phase"), without I/O: bytes to requests, the rules that every
//! request is held to before an export sees it, and replies to bytes. It knows no socket and no export but its [`ExportInfo`].

use crate::export::{ExportInfo, IoError};
use crate::protocol::{self, WireReader, chunk, command, command_flag};

/// Why a transmission can't go on: the place where the next request begins is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransmissionError {
    /// A request did not begin with its magic number.
    #[error("the client sent {0:#010x} where a request has to begin")]
    RequestMagic(u32),
}

/// One request as it stands on the wire ("Request message"), unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Request type.
    pub kind: u16,
    /// The client's mark; it goes back in the reply.
    pub cookie: u64,
    /// Where in the export, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub length: u32,
}

impl Request {
    /// Reads a request off the front of `input`; `None` when it is not complete. It takes [`protocol::REQUEST_LEN`] bytes,
    /// and [`Request::payload_len`] more follow.
    ///
    /// # Errors
    /// When `input` does not begin with a request.
    pub fn parse(input: &[u8]) -> Result<Option<Self>, TransmissionError> {
        let mut reader = WireReader(input);
        match reader.u32() {
            None => return Ok(None),
            Some(protocol::REQUEST_MAGIC) => {}
            Some(magic) => return Err(TransmissionError::RequestMagic(magic)),
        }
        let mut fields = || {
            Some(Self {
                flags: reader.u16()?,
                kind: reader.u16()?,
                cookie: reader.u64()?,
                offset: reader.u64()?,
                length: reader.u32()?,
            })
        };
        Ok(fields())
    }

    /// Bytes that follow the request, also when it is refused.
    pub fn payload_len(&self) -> u32 {
        if self.kind == command::WRITE {
            self.length
        } else {
            0
        }
    }
}

/// A request that an export may be asked for: its range is not empty and lies within the disk, its flags were advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// NBD_CMD_READ.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`protocol::MAX_PAYLOAD`].
        len: u32,
    },
    /// NBD_CMD_WRITE.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`protocol::MAX_PAYLOAD`].
        len: u32,
        /// Durable before it is answered.
        fua: bool,
    },
    /// NBD_CMD_FLUSH.
    Flush,
    /// NBD_CMD_TRIM.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Durable before it is answered.
        fua: bool,
    },
    /// NBD_CMD_WRITE_ZEROES.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// NO_HOLE was not set.
        may_trim: bool,
        /// Fail rather than be slow.
        fast: bool,
        /// Durable before it is answered.
        fua: bool,
    },
    /// A request of length 0, which the protocol leaves unspecified: it succeeds and does nothing.
    Nothing,
    /// NBD_CMD_DISC: answer what is under way, then close.
    Disconnect,
}

/// The rules of one attachment: what was advertised decides what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    info: ExportInfo,
    structured: bool,
}

impl Rules {
    /// The rules for an export, with what the handshake agreed on.
    pub fn new(info: ExportInfo, structured: bool) -> Self {
        Self { info, structured }
    }

    /// True when reads are answered in structured replies.
    pub fn structured(&self) -> bool {
        self.structured
    }

    /// Checks one request.
    ///
    /// # Errors
    /// What the client is told ("Error values"): a changing request on a read-only export is [`IoError::Perm`], a range beyond the end
    /// [`IoError::NoSpace`] for writes and [`IoError::Inval`] otherwise, anything not advertised [`IoError::Inval`].
    pub fn check(&self, request: &Request) -> Result<Operation, IoError> {
        let Request {
            kind,
            offset,
            length: len,
            ..
        } = *request;
        self.check_flags(request)?;
        let flag = |flag| request.flags & flag != 0;
        // "The server MUST accept all commands with this bit set (even by ignoring the bit)", if it was advertised.
        let fua = flag(command_flag::FUA);
        match kind {
            command::DISC => return Ok(Operation::Disconnect),
            command::FLUSH if self.info.can_flush => return Ok(Operation::Flush),
            command::READ => self.check_range(request, IoError::Inval)?,
            command::WRITE => {
                self.check_writable()?;
                self.check_range(request, IoError::NoSpace)?;
            }
            command::TRIM if self.info.can_trim || self.info.read_only => {
                self.check_writable()?;
                self.check_range(request, IoError::Inval)?;
            }
            command::WRITE_ZEROES if self.info.can_zeroes || self.info.read_only => {
                self.check_writable()?;
                self.check_range(request, IoError::NoSpace)?;
            }
            _ => return Err(IoError::Inval),
        }
        if len == 0 {
            return Ok(Operation::Nothing);
        }
        if matches!(kind, command::READ | command::WRITE) && len > protocol::MAX_PAYLOAD {
            return Err(IoError::Inval);
        }
        Ok(match kind {
            command::READ => Operation::Read { offset, len },
            command::WRITE => Operation::Write { offset, len, fua },
            command::TRIM => Operation::Trim { offset, len, fua },
            _ => Operation::WriteZeroes {
                offset,
                len,
                may_trim: !flag(command_flag::NO_HOLE),
                fast: flag(command_flag::FAST_ZERO),
                fua,
            },
        })
    }

    fn check_flags(&self, request: &Request) -> Result<(), IoError> {
        let info = &self.info;
        let mut allowed = 0;
        if info.can_fua && !info.read_only {
            allowed |= command_flag::FUA;
        }
        if request.kind == command::READ && self.structured {
            allowed |= command_flag::DF;
        }
        if request.kind == command::WRITE_ZEROES {
            allowed |= command_flag::NO_HOLE;
            if info.can_fast_zero {
                allowed |= command_flag::FAST_ZERO;
            }
        }
        if request.flags & !allowed == 0 {
            Ok(())
        } else {
            Err(IoError::Inval)
        }
    }

    fn check_writable(&self) -> Result<(), IoError> {
        if self.info.read_only {
            Err(IoError::Perm)
        } else {
            Ok(())
        }
    }

    fn check_range(&self, request: &Request, beyond: IoError) -> Result<(), IoError> {
        match request.offset.checked_add(u64::from(request.length)) {
            Some(end) if end <= self.info.size => Ok(()),
            _ => Err(beyond),
        }
    }

    /// Bytes before the data of a successful READ.
    pub fn read_head_len(&self) -> usize {
        if self.structured {
            protocol::CHUNK_HEADER_LEN + protocol::CHUNK_OFFSET_LEN
        } else {
            protocol::SIMPLE_REPLY_LEN
        }
    }

    /// Writes what stands before the data of a successful READ into `head`, which is [`Rules::read_head_len`] bytes long.
    pub fn put_read_head(&self, head: &mut [u8], cookie: u64, offset: u64, len: u32) {
        if self.structured {
            // The length is at most MAX_PAYLOAD: no overflow.
            let payload = len + 8;
            let header = chunk_header(chunk::OFFSET_DATA, cookie, payload);
            fill(head, &[&header, &offset.to_be_bytes()]);
        } else {
            fill(head, &[&simple_reply(cookie, None)]);
        }
    }

    /// Appends the whole reply to a request that has no data to bring back: its success, or its error.
    pub fn put_outcome(&self, out: &mut Vec<u8>, request: &Request, outcome: Result<(), IoError>) {
        // "MUST use structured replies for NBD_CMD_READ" once they are agreed on; the others may stay simple.
        if !(self.structured && request.kind == command::READ) {
            out.extend_from_slice(&simple_reply(request.cookie, outcome.err()));
            return;
        }
        let Err(error) = outcome else {
            out.extend_from_slice(&chunk_header(chunk::NONE, request.cookie, 0));
            return;
        };
        let message = error.to_string();
        let message_len = u16::try_from(message.len()).unwrap_or(0);
        let message = message.get(..usize::from(message_len)).unwrap_or_default();
        out.extend_from_slice(&chunk_header(
            chunk::ERROR,
            request.cookie,
            u32::from(message_len) + 6,
        ));
        out.extend_from_slice(&protocol::error_number(error).to_be_bytes());
        out.extend_from_slice(&message_len.to_be_bytes());
        out.extend_from_slice(message.as_bytes());
    }
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

/// Every reply of this server is one chunk, which is its last.
fn chunk_header(kind: u16, cookie: u64, payload: u32) -> [u8; protocol::CHUNK_HEADER_LEN] {
    let mut header = [0; protocol::CHUNK_HEADER_LEN];
    fill(
        &mut header,
        &[
            &protocol::STRUCTURED_REPLY_MAGIC.to_be_bytes(),
            &protocol::CHUNK_FLAG_DONE.to_be_bytes(),
            &kind.to_be_bytes(),
            &cookie.to_be_bytes(),
            &payload.to_be_bytes(),
        ],
    );
    header
}

/// Copies the parts one after another into `target`, as far as there is room.
fn fill(target: &mut [u8], parts: &[&[u8]]) {
    let bytes = parts.iter().flat_map(|part| part.iter());
    for (slot, byte) in target.iter_mut().zip(bytes) {
        *slot = *byte;
    }
}

#[cfg(test)]
#[path = "transmission_tests.rs"]
mod tests;
