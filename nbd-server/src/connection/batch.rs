//! The answers that a connection's thread makes in place and sends together.

use crate::export::IoError;
use crate::transmission::{Request, Rules};

/// What the buffer may keep between batches; one large read must not hold its memory for ever.
const KEPT: usize = 2 << 20;

/// Whole replies, one after another. The buffer stays initialised from batch to batch, so that no read zeroes its room first.
#[derive(Debug, Default)]
pub struct Batch {
    buffer: Vec<u8>,
    used: usize,
    scratch: Vec<u8>,
}

impl Batch {
    /// Bytes of replies.
    pub fn len(&self) -> usize {
        self.used
    }

    /// The replies.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.used).unwrap_or_default()
    }

    /// Room for `len` bytes behind the replies; it holds anything and becomes a reply by [`Batch::keep`].
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.used + len;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        self.buffer.get_mut(self.used..end).unwrap_or_default()
    }

    /// Makes the first `len` bytes of the room that was asked for last a reply.
    pub fn keep(&mut self, len: usize) {
        self.used = (self.used + len).min(self.buffer.len());
    }

    /// Adds a reply without data.
    pub fn put_outcome(&mut self, rules: &Rules, request: &Request, outcome: Result<(), IoError>) {
        let mut reply = std::mem::take(&mut self.scratch);
        reply.clear();
        rules.put_outcome(&mut reply, request, outcome);
        self.room(reply.len()).copy_from_slice(&reply);
        self.keep(reply.len());
        self.scratch = reply;
    }

    /// Forgets the replies.
    pub fn clear(&mut self) {
        self.used = 0;
        self.buffer.truncate(KEPT);
        self.buffer.shrink_to(KEPT);
    }
}
