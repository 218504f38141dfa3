//! One NBD connection of the load generator: requests go into one buffer and leave with one send, what comes back is
//! received in large pieces. Knows neither what is asked for nor what the answers mean.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use nbd_server::protocol as wire;

use super::handshake::Attached;

/// Bytes received at once: enough for what a socket buffer holds, small enough to stay in the second-level cache.
const RECEIVE: usize = 256 << 10;

/// What a slot is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub kind: Kind,
    pub offset: u64,
    pub len: u32,
    /// Of a write: what it writes.
    pub version: u32,
    pub sent: Instant,
    /// Of a read: bytes that have not come yet.
    pub left: usize,
    /// Of a read: every byte is checked, not only the ends of sectors.
    pub full: bool,
}

/// A connection and its requests in flight.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    start: usize,
    end: usize,
}

impl Connection {
    /// A connection that keeps up to `depth` requests in flight.
    pub(crate) fn new(attached: Attached, depth: usize) -> io::Result<Self> {
        attached.stream.set_nonblocking(true)?;
        Ok(Self {
            stream: attached.stream,
            slots: vec![None; depth],
            free: (0..depth).rev().collect(),
            out: Vec::new(),
            sent: 0,
            input: vec![0; RECEIVE],
            start: 0,
            end: 0,
        })
    }

    /// The socket, for `poll`.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// How many more requests can be queued.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Whether nothing is in flight.
    pub(crate) fn idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Bytes queued and not sent.
    pub(crate) fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Queues a request; `payload` fills the payload of a write. There must be a free slot.
    pub(crate) fn queue(&mut self, slot: Slot, payload: impl FnOnce(&mut [u8])) {
        let Some(index) = self.free.pop() else { return };
        let command = match slot.kind {
            Kind::Read => wire::command::READ,
            Kind::Write => wire::command::WRITE,
            Kind::Flush => wire::command::FLUSH,
        };
        self.out.extend(wire::REQUEST_MAGIC.to_be_bytes());
        self.out.extend(0u16.to_be_bytes());
        self.out.extend(command.to_be_bytes());
        self.out.extend((index as u64).to_be_bytes());
        self.out.extend(slot.offset.to_be_bytes());
        self.out.extend(slot.len.to_be_bytes());
        if slot.kind == Kind::Write {
            let at = self.out.len();
            self.out.resize(at + slot.len as usize, 0);
            if let Some(bytes) = self.out.get_mut(at..) {
                payload(bytes);
            }
        }
        if let Some(place) = self.slots.get_mut(index) {
            *place = Some(slot);
        }
    }

    /// A copy of the request with this cookie.
    pub(crate) fn peek(&self, cookie: u64) -> Option<Slot> {
        *self.slots.get(usize::try_from(cookie).ok()?)?
    }

    /// The request with this cookie.
    pub(crate) fn slot(&mut self, cookie: u64) -> Option<&mut Slot> {
        let index = usize::try_from(cookie).ok()?;
        self.slots.get_mut(index)?.as_mut()
    }

    /// Takes the request with this cookie out: it was answered.
    pub(crate) fn finish(&mut self, cookie: u64) -> Option<Slot> {
        let index = usize::try_from(cookie).ok()?;
        let slot = self.slots.get_mut(index)?.take()?;
        self.free.push(index);
        Some(slot)
    }

    /// Sends what is queued as far as the socket takes it; whether anything moved.
    pub(crate) fn send(&mut self) -> io::Result<bool> {
        let mut moved = false;
        while self.sent < self.out.len() {
            match self.stream.write(self.out.get(self.sent..).unwrap_or(&[])) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(moved),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            moved = true;
        }
        self.out.clear();
        self.sent = 0;
        Ok(moved)
    }

    /// Receives once; whether anything came.
    pub(crate) fn receive(&mut self) -> io::Result<bool> {
        if self.start > 0 {
            self.input.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        match self
            .stream
            .read(self.input.get_mut(self.end..).unwrap_or(&mut []))
        {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.end += n;
                Ok(true)
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// What was received and not consumed.
    pub(crate) fn received(&self) -> &[u8] {
        self.input.get(self.start..self.end).unwrap_or(&[])
    }

    /// Consumes the first `n` bytes of it.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }
}
