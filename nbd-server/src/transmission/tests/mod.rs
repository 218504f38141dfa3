//! Requests and replies against bytes, and the rules against a plain statement of them.
#![allow(clippy::unwrap_used)]

mod rules;
mod wire;

use super::*;
use crate::agreed::{Agreed, Headers, MetaContext, Slot};
use crate::export::ExportInfo;
use crate::protocol::{self, command};

const SIZE: u64 = 1 << 30;

fn request(kind: u16, flags: u16, offset: u64, length: u32) -> Request {
    Request {
        flags,
        kind,
        cookie: 0x0102_0304_0506_0708,
        offset,
        length: length.into(),
        payload_len: if kind == command::WRITE { length } else { 0 },
    }
}

fn bytes_of(request: &Request) -> Vec<u8> {
    let mut bytes = protocol::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&request.flags.to_be_bytes());
    bytes.extend_from_slice(&request.kind.to_be_bytes());
    bytes.extend_from_slice(&request.cookie.to_be_bytes());
    bytes.extend_from_slice(&request.offset.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(request.length).unwrap().to_be_bytes());
    bytes
}

fn extended_bytes_of(request: &Request) -> Vec<u8> {
    let mut bytes = protocol::EXTENDED_REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&request.flags.to_be_bytes());
    bytes.extend_from_slice(&request.kind.to_be_bytes());
    bytes.extend_from_slice(&request.cookie.to_be_bytes());
    bytes.extend_from_slice(&request.offset.to_be_bytes());
    bytes.extend_from_slice(&request.length.to_be_bytes());
    bytes
}

fn structured(structured: bool) -> Agreed {
    Agreed::headers(if structured {
        Headers::Structured
    } else {
        Headers::Simple
    })
}

fn rules(read_only: bool, with_structured: bool) -> Rules {
    Rules::new(
        ExportInfo {
            read_only,
            ..ExportInfo::full(SIZE)
        },
        structured(with_structured),
    )
}

/// Extended headers, everything that an export can offer, and these contexts.
fn extended(contexts: &[MetaContext]) -> Rules {
    let info = ExportInfo {
        can_resize: true,
        ..ExportInfo::full(SIZE)
    };
    Rules::new(
        info,
        Agreed {
            headers: Headers::Extended,
            contexts: contexts.iter().copied().collect(),
        },
    )
}

fn long(kind: u16, flags: u16, offset: u64, length: u64) -> Request {
    Request {
        length,
        ..request(kind, flags, offset, 0)
    }
}

const BOTH: [MetaContext; 2] = MetaContext::FIXED;
