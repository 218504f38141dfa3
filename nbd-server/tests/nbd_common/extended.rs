//! A client with extended headers that speaks the wire byte by byte: what no released client sends can be sent with it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{Client, go_data, option, option_reply};

pub const CACHE: u16 = 5;
pub const BLOCK_STATUS: u16 = 7;
pub const RESIZE: u16 = 8;
pub const PAYLOAD_LEN: u16 = 1 << 5;
pub const REQ_ONE: u16 = 1 << 3;

/// An attached client, and the transmission flags that it was told.
pub struct Extended {
    pub stream: UnixStream,
    pub flags: u16,
}

/// One chunk of a reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Chunk {
    pub last: bool,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub payload: Vec<u8>,
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub fn context_data(export: &str, queries: &[&str]) -> Vec<u8> {
    let length = |length: usize| u32::try_from(length).unwrap().to_be_bytes();
    let mut data = length(export.len()).to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&length(queries.len()));
    for query in queries {
        data.extend_from_slice(&length(query.len()));
        data.extend_from_slice(query.as_bytes());
    }
    data
}

impl Extended {
    pub fn attach(socket: &Path, export: &str, contexts: &[&str]) -> Self {
        let mut stream = Client::connect(socket);
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(&option(11, &[])).unwrap();
        assert_eq!(option_reply(&mut stream).0, 1);
        if !contexts.is_empty() {
            stream
                .write_all(&option(10, &context_data(export, contexts)))
                .unwrap();
            while option_reply(&mut stream).0 != 1 {}
        }
        stream.write_all(&option(7, &go_data(export))).unwrap();
        let (kind, info) = option_reply(&mut stream);
        assert_eq!((kind, &info[..2]), (3, &[0, 0][..]));
        let flags = u16::from_be_bytes(info[10..12].try_into().unwrap());
        while option_reply(&mut stream).0 != 1 {}
        Self { stream, flags }
    }

    pub fn send(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, length: u64) {
        let mut bytes = 0x21e4_1c71u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn receive(&mut self) -> Chunk {
        assert_eq!(u32::from_be_bytes(self.take()), 0x6e8a_278c);
        let last = u16::from_be_bytes(self.take()) == 1;
        let kind = u16::from_be_bytes(self.take());
        let cookie = u64::from_be_bytes(self.take());
        let offset = u64::from_be_bytes(self.take());
        let length = usize::try_from(u64::from_be_bytes(self.take())).unwrap();
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).unwrap();
        Chunk {
            last,
            kind,
            cookie,
            offset,
            payload,
        }
    }

    /// One request and all chunks of its reply.
    pub fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Vec<Chunk> {
        self.send(kind, flags, 99, offset, length);
        self.stream.write_all(payload).unwrap();
        let mut chunks: Vec<Chunk> = Vec::new();
        while !chunks.last().is_some_and(|chunk| chunk.last) {
            let chunk = self.receive();
            assert_eq!((chunk.cookie, chunk.offset), (99, offset));
            chunks.push(chunk);
        }
        chunks
    }

    /// The same for a request that only succeeds or fails: its error, 0 for none.
    pub fn error(
        &mut self,
        kind: u16,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> u32 {
        match &self.ask(kind, flags, offset, length, payload)[..] {
            [chunk] if chunk.kind == 0 && chunk.payload.is_empty() => 0,
            [chunk] if chunk.kind == (1 << 15) | 1 => {
                u32::from_be_bytes(chunk.payload[..4].try_into().unwrap())
            }
            other => panic!("{other:?}"),
        }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// Context, and the (length, flags) of its extents, in a chunk of BLOCK_STATUS_EXT.
pub fn status(chunk: &Chunk) -> (u32, Vec<(u64, u64)>) {
    assert_eq!(chunk.kind, 6);
    let (head, extents) = chunk.payload.split_at(8);
    let count = u32::from_be_bytes(head[4..].try_into().unwrap());
    let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    let extents: Vec<(u64, u64)> = extents
        .chunks(16)
        .map(|extent| (word(&extent[..8]), word(&extent[8..])))
        .collect();
    assert_eq!(extents.len(), count as usize);
    (u32::from_be_bytes(head[..4].try_into().unwrap()), extents)
}
