//! The receive buffer of one connection: many small requests per system call. It knows nothing of what the bytes mean.

use std::io;

use super::socket::Socket;

/// Room for 64 requests with 4 KiB each, so that a deep queue arrives in one or two calls; pages that are never filled cost nothing.
pub const CAPACITY: usize = 256 << 10;

/// Bytes received and not yet consumed.
#[derive(Debug)]
pub struct ReceiveBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    /// An empty buffer of [`CAPACITY`] bytes.
    pub fn new() -> Self {
        Self {
            bytes: vec![0; CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// What was received and not yet consumed.
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Drops `count` bytes from the front, or all if there are fewer.
    pub fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// Receives at least one byte behind what is there; `Ok(0)` is the end of the stream.
    ///
    /// # Errors
    /// As recv(2); `OutOfMemory` when the buffer is full, which callers avoid by consuming or by taking large payloads directly.
    pub fn fill(&mut self, socket: &Socket) -> io::Result<usize> {
        let received = socket.recv(self.room()?)?;
        self.end += received;
        Ok(received)
    }

    /// The same without waiting: `None` if nothing is there.
    ///
    /// # Errors
    /// As [`ReceiveBuffer::fill`].
    pub fn try_fill(&mut self, socket: &Socket) -> io::Result<Option<usize>> {
        let received = socket.try_recv(self.room()?)?;
        self.end += received.unwrap_or(0);
        Ok(received)
    }

    /// Moves what is there to the front; the room behind it.
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match self.bytes.get_mut(self.end..) {
            Some(room) if !room.is_empty() => Ok(room),
            _ => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }
}
