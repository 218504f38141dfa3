//! The receive buffer of one connection: many small requests per system call. It knows nothing of what the bytes mean.

use std::io;

use super::socket::Socket;

/// Room for 64 requests with 4 KiB each, so that a deep queue arrives in one or two calls; pages that are never filled cost nothing.
pub const CAPACITY: usize = 256 << 10;

/// Bytes received and not yet consumed.
#[derive(Debug)]
pub struct ReceiveBuffer {
    /// Never grows: to clear all of it for each connection would take longer than most handshakes.
    bytes: Vec<u8>,
    /// How many at the front are consumed.
    start: usize,
}

impl ReceiveBuffer {
    /// An empty buffer of [`CAPACITY`] bytes.
    pub fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(CAPACITY),
            start: 0,
        }
    }

    /// What was received and not yet consumed.
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Drops `count` bytes from the front, or all if there are fewer.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.bytes.len());
    }

    /// Receives at least one byte behind what is there; `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// As recv(2); `OutOfMemory` when the buffer is full, which callers avoid by consuming or by taking large payloads directly.
    pub fn fill(&mut self, socket: &Socket) -> io::Result<usize> {
        socket.recv(self.room()?)
    }

    /// The same without waiting: `None` if nothing is there.
    ///
    /// # Errors
    /// As [`ReceiveBuffer::fill`].
    pub fn try_fill(&mut self, socket: &Socket) -> io::Result<Option<usize>> {
        socket.try_recv(self.room()?)
    }

    /// Moves what is there to the front; there is room behind it.
    fn room(&mut self) -> io::Result<&mut Vec<u8>> {
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.len() == self.bytes.capacity() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(&mut self.bytes)
    }
}
