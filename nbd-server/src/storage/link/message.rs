//! Requests and replies as a link carries them: bytes, and how many are to come. Knows no protocol.

use std::io::{self, IoSlice, Write};

use bytes::Bytes;

use super::super::stream::Stream;

/// Of the bytes that follow a message to fill it up.
static PADDING: [u8; 4] = [0; 4];

/// What a server said.
#[derive(Debug, Default)]
pub(in crate::storage) struct Reply {
    /// The protocol's number of an error, 0 for none.
    pub error: u32,
    /// What came with it.
    pub data: Vec<u8>,
}

/// A reply, and how it came.
#[derive(Debug)]
pub(in crate::storage) struct Answer {
    /// What the server said.
    pub reply: Reply,
    /// Number of the connection that it came over.
    pub connection: u64,
    /// The request was sent more than once.
    pub repeated: bool,
}

/// A request as it goes over the wire.
#[derive(Debug)]
pub(in crate::storage) struct Message {
    /// What is made for it.
    pub head: Vec<u8>,
    /// What follows, without a copy.
    pub body: Bytes,
    /// Zeros behind the body, at most 3.
    pub padding: usize,
    /// Bytes of data that the reply brings.
    pub expected: usize,
}

impl Message {
    /// One without a body.
    pub fn new(head: Vec<u8>) -> Self {
        Self {
            head,
            body: Bytes::new(),
            padding: 0,
            expected: 0,
        }
    }

    /// Sends it, as a whole or not to its end.
    ///
    /// # Errors
    /// What the system says.
    pub fn send(&self, to: &mut Stream) -> io::Result<()> {
        let padding = PADDING.get(..self.padding).unwrap_or_default();
        let mut parts = [
            IoSlice::new(&self.head),
            IoSlice::new(&self.body),
            IoSlice::new(padding),
        ];
        let mut parts = parts.as_mut_slice();
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match to.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => IoSlice::advance_slices(&mut parts, sent),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
