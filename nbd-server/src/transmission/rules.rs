//! The rules that every request is held to before an export sees it: what was advertised and agreed on decides what is accepted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::request::{Request, TransmissionError};
use crate::agreed::{Agreed, Contexts, Headers, MetaContext};
use crate::export::{ExportInfo, IoError};
use crate::protocol::{self, WireReader, command, command_flag};

/// A request that an export may be asked for: its range is not empty and lies within the disk, its flags were advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// NBD_CMD_READ.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at most [`protocol::MAX_PAYLOAD`].
        len: u32,
        /// The answer may have several chunks, and holes.
        fragment: bool,
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
        len: u64,
        /// Durable before it is answered.
        fua: bool,
    },
    /// NBD_CMD_WRITE_ZEROES.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// NO_HOLE was not set.
        may_trim: bool,
        /// Fail rather than be slow.
        fast: bool,
        /// Durable before it is answered.
        fua: bool,
    },
    /// NBD_CMD_CACHE.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// NBD_CMD_BLOCK_STATUS.
    BlockStatus {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// One extent per context, which ends within the range.
        one: bool,
        /// What is asked for; not empty.
        contexts: Contexts,
    },
    /// NBD_CMD_RESIZE.
    Resize {
        /// The new size in bytes, more than 0.
        size: u64,
    },
    /// A request of length 0, which the protocol leaves unspecified: it succeeds and does nothing.
    Nothing,
    /// NBD_CMD_DISC: answer what is under way, then close.
    Disconnect,
}

/// The rules of one attachment.
#[derive(Debug)]
pub struct Rules {
    info: ExportInfo,
    pub(super) agreed: Agreed,
    /// The size as this client knows it: only its own RESIZE changes it.
    size: AtomicU64,
    /// The greatest size that it has known.
    greatest: AtomicU64,
}

impl Rules {
    /// The rules for an export, with what the handshake agreed on.
    pub fn new(info: ExportInfo, agreed: Agreed) -> Self {
        let (size, greatest) = (AtomicU64::new(info.size), AtomicU64::new(info.size));
        Self {
            info,
            agreed,
            size,
            greatest,
        }
    }

    /// The export as the client was told of it.
    pub fn info(&self) -> &ExportInfo {
        &self.info
    }

    /// What the handshake agreed on.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// Reads a request off the front of `input`, as [`Request::parse`].
    ///
    /// # Errors
    /// As [`Request::parse`].
    pub fn parse(&self, input: &[u8]) -> Result<Option<Request>, TransmissionError> {
        Request::parse(input, self.agreed.headers)
    }

    /// Takes note of a RESIZE that the export has done: from now on requests are held to this size.
    pub fn resized(&self, size: u64) {
        self.greatest.fetch_max(size, Ordering::Relaxed);
        self.size.store(size, Ordering::Relaxed);
    }

    /// Checks one request. `payload` is what follows it, and needs to be whole for BLOCK_STATUS only; otherwise it is not looked at.
    ///
    /// # Errors
    /// What the client is told ("Error values"): a changing request on a read-only export is [`IoError::Perm`], a range beyond the end
    /// [`IoError::NoSpace`] for writes and [`IoError::Inval`] otherwise, anything not advertised [`IoError::Inval`].
    pub fn check(&self, request: &Request, payload: &[u8]) -> Result<Operation, IoError> {
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
            command::BLOCK_STATUS => return self.check_status(request, payload),
            command::RESIZE if self.info.can_resize => return self.check_resize(offset),
            command::READ => self.check_range(offset, len, IoError::Inval)?,
            command::CACHE if self.info.can_cache => {
                self.check_range(offset, len, IoError::Inval)?;
            }
            command::WRITE => {
                self.check_writable()?;
                self.check_range(offset, len, IoError::NoSpace)?;
            }
            command::TRIM if self.info.can_trim || self.info.read_only => {
                self.check_writable()?;
                self.check_range(offset, len, IoError::Inval)?;
            }
            command::WRITE_ZEROES if self.info.can_zeroes || self.info.read_only => {
                self.check_writable()?;
                self.check_range(offset, len, IoError::NoSpace)?;
            }
            _ => return Err(IoError::Inval),
        }
        if len == 0 {
            return Ok(Operation::Nothing);
        }
        Ok(match kind {
            command::READ => Operation::Read {
                offset,
                len: self.check_payload(len)?,
                fragment: self.agreed.headers.chunked() && !flag(command_flag::DF),
            },
            command::WRITE => Operation::Write {
                offset,
                len: self.check_payload(len)?,
                fua,
            },
            command::TRIM => Operation::Trim { offset, len, fua },
            command::CACHE => Operation::Cache { offset, len },
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
        let extended = self.agreed.headers == Headers::Extended;
        let mut allowed = 0;
        if info.can_fua && !info.read_only {
            allowed |= command_flag::FUA;
        }
        match request.kind {
            command::READ if self.agreed.headers.chunked() => allowed |= command_flag::DF,
            command::WRITE if extended => {
                allowed |= command_flag::PAYLOAD_LEN;
                // "the flag MUST be set for NBD_CMD_WRITE"; without it there is no data to write.
                if request.flags & command_flag::PAYLOAD_LEN == 0 {
                    return Err(IoError::Inval);
                }
            }
            command::WRITE_ZEROES => {
                allowed |= command_flag::NO_HOLE;
                if info.can_fast_zero {
                    allowed |= command_flag::FAST_ZERO;
                }
            }
            command::BLOCK_STATUS => {
                allowed |= command_flag::REQ_ONE;
                if extended {
                    allowed |= command_flag::PAYLOAD_LEN;
                }
            }
            _ => {}
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

    /// READ and WRITE carry so much in one message.
    fn check_payload(&self, len: u64) -> Result<u32, IoError> {
        let max = self.info.block_size.maximum.min(protocol::MAX_PAYLOAD);
        match u32::try_from(len) {
            Ok(len) if len <= max => Ok(len),
            _ => Err(IoError::Inval),
        }
    }

    fn check_range(&self, offset: u64, len: u64, beyond: IoError) -> Result<(), IoError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size.load(Ordering::Relaxed) => {}
            // "requests beyond the new size but not beyond the old one MUST fail with ENOSPC" (extension RESIZE).
            Some(end) if end <= self.greatest.load(Ordering::Relaxed) => {
                return Err(IoError::NoSpace);
            }
            _ => return Err(beyond),
        }
        let block = u64::from(self.info.block_size.minimum.max(1));
        if offset.is_multiple_of(block) && len.is_multiple_of(block) {
            Ok(())
        } else {
            Err(IoError::Inval)
        }
    }

    fn check_status(&self, request: &Request, payload: &[u8]) -> Result<Operation, IoError> {
        let (mut len, mut contexts) = (request.length, self.agreed.contexts);
        if request.flags & command_flag::PAYLOAD_LEN != 0 {
            if payload.len() != request.payload_len as usize {
                return Err(IoError::Inval);
            }
            (len, contexts) = self.status_payload(payload).ok_or(IoError::Inval)?;
        }
        if contexts.is_empty() || len == 0 {
            return Err(IoError::Inval);
        }
        self.check_range(request.offset, len, IoError::Inval)?;
        Ok(Operation::BlockStatus {
            offset: request.offset,
            len,
            one: request.flags & command_flag::REQ_ONE != 0,
            contexts,
        })
    }

    /// The effect length and the ids of contexts. `None`: malformed, or an id twice or of a context that was not selected.
    fn status_payload(&self, payload: &[u8]) -> Option<(u64, Contexts)> {
        let mut reader = WireReader(payload);
        let len = reader.u64()?;
        let mut contexts = Contexts::default();
        while !reader.0.is_empty() {
            let context = MetaContext::from_id(reader.u32()?)?;
            if !self.agreed.contexts.contains(context) || !contexts.insert(context) {
                return None;
            }
        }
        Some((len, contexts))
    }

    fn check_resize(&self, size: u64) -> Result<Operation, IoError> {
        self.check_writable()?;
        let block = u64::from(self.info.block_size.minimum.max(1));
        // Offsets of files are signed.
        if size == 0 || i64::try_from(size).is_err() || !size.is_multiple_of(block) {
            return Err(IoError::Inval);
        }
        Ok(Operation::Resize { size })
    }
}
