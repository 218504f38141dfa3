//! Bytes to requests ("Request message"), compact and extended. Nothing is judged here but where the next request begins.

use crate::agreed::Headers;
use crate::protocol::{self, WireReader, command, command_flag};

/// Why a transmission can't go on: the place where the next request begins is lost, or too far away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransmissionError {
    /// A request did not begin with the magic number of the agreed form.
    #[error("the client sent {0:#010x} where a request has to begin")]
    RequestMagic(u32),
    /// An extended request with more payload than was advertised ("A server SHOULD initiate hard disconnect").
    #[error("the client announced a payload of {0} bytes, which is more than the {max} that are allowed", max = protocol::MAX_PAYLOAD)]
    PayloadTooLong(u64),
}

/// One request as it stands on the wire, unchecked.
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
    /// How much, in bytes: of the export, or of the payload.
    pub length: u64,
    /// Bytes that follow the request, also when it is refused.
    pub payload_len: u32,
}

impl Request {
    /// Reads a request off the front of `input`; `None` when it is not complete. It takes [`Headers::request_len`] bytes, and
    /// [`Request::payload_len`] more follow.
    ///
    /// # Errors
    /// When `input` does not begin with a request, or with one whose payload is too long to be skipped.
    pub fn parse(input: &[u8], headers: Headers) -> Result<Option<Self>, TransmissionError> {
        let extended = headers == Headers::Extended;
        let magic = if extended {
            protocol::EXTENDED_REQUEST_MAGIC
        } else {
            protocol::REQUEST_MAGIC
        };
        let mut reader = WireReader(input);
        match reader.u32() {
            None => return Ok(None),
            Some(found) if found == magic => {}
            Some(found) => return Err(TransmissionError::RequestMagic(found)),
        }
        let mut fields = || {
            Some(Self {
                flags: reader.u16()?,
                kind: reader.u16()?,
                cookie: reader.u64()?,
                offset: reader.u64()?,
                length: if extended {
                    reader.u64()?
                } else {
                    reader.u32()?.into()
                },
                payload_len: 0,
            })
        };
        let Some(mut request) = fields() else {
            return Ok(None);
        };
        let carries = if extended {
            request.flags & command_flag::PAYLOAD_LEN != 0
        } else {
            request.kind == command::WRITE
        };
        if carries {
            request.payload_len = match u32::try_from(request.length) {
                Ok(length) if !extended || length <= protocol::MAX_PAYLOAD => length,
                _ => return Err(TransmissionError::PayloadTooLong(request.length)),
            };
        }
        Ok(Some(request))
    }
}
