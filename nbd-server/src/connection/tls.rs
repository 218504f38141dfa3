//! One TLS connection over a socket. The state machine without I/O is rustls'; here are its locks, its buffers and its system calls.
//!
//! One thread receives and one at a time sends. Both do their system calls outside of the lock on the state machine, so that a
//! client which takes nothing keeps nobody from receiving. It knows nothing of NBD.

use std::io::{self, BufRead, ErrorKind, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{self, RecvFlags, SendFlags};
use rustls::ServerConnection;

use crate::access::CertificateNames;

/// Ciphertext received at once.
const RECEIVE: usize = 128 << 10;
/// Plaintext that is sealed before any of it is sent: what one client that takes nothing makes the server hold beside its replies.
const SEAL: usize = 256 << 10;
/// The sealed buffer is given back when it grew beyond this and is empty.
const KEEP: usize = 512 << 10;

/// The state of TLS on one socket.
pub(super) struct TlsStream {
    connection: Mutex<ServerConnection>,
    /// Of the thread that receives.
    incoming: Mutex<Incoming>,
    /// Of the one that sends.
    outgoing: Mutex<Outgoing>,
    /// Sealed bytes wait for the socket.
    unsent: AtomicBool,
    /// Receiving ends then with [`ErrorKind::WouldBlock`]: a client that sends a record byte by byte never lets a single receive time out.
    deadline: Mutex<Option<Instant>>,
}

struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsStream")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fault of the peer, or an attack.
fn fault(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

impl TlsStream {
    pub(super) fn new(mut connection: ServerConnection) -> Self {
        // What may be sealed at once is bounded here, by SEAL.
        connection.set_buffer_limit(None);
        Self {
            connection: Mutex::new(connection),
            incoming: Mutex::new(Incoming {
                bytes: vec![0; RECEIVE].into_boxed_slice(),
                start: 0,
                end: 0,
            }),
            outgoing: Mutex::default(),
            unsent: AtomicBool::new(false),
            deadline: Mutex::default(),
        }
    }

    /// One step of the TLS handshake: sends what there is, and unless that was the end receives once. True: it has ended.
    pub(super) fn shake(&self, fd: &OwnedFd) -> io::Result<bool> {
        let mut incoming = lock(&self.incoming);
        let mut fed = Ok(());
        {
            let mut connection = lock(&self.connection);
            while connection.is_handshaking() && !incoming.is_empty() && fed.is_ok() {
                fed = feed(&mut connection, &mut incoming).map(drop);
            }
        }
        if fed.is_err() {
            self.alert(fd);
        }
        fed?;
        self.seal(fd, &mut lock(&self.outgoing), &[], true)?;
        if !lock(&self.connection).is_handshaking() {
            return Ok(true);
        }
        match incoming.fill(fd)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(false),
        }
    }

    /// The names in the client's certificate; `None` when it has shown none.
    pub(super) fn client(&self) -> Option<CertificateNames> {
        let connection = lock(&self.connection);
        let own = connection.peer_certificates()?.first()?;
        Some(crate::tls::names(own))
    }

    pub(super) fn set_deadline(&self, deadline: Option<Instant>) {
        *lock(&self.deadline) = deadline;
    }

    /// Receives at least one and at most `room` bytes. `put` takes them piece by piece, with the place of each; 0 is the end.
    pub(super) fn recv(
        &self,
        fd: &OwnedFd,
        room: usize,
        mut put: impl FnMut(usize, &[u8]),
    ) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        let mut taken = 0;
        loop {
            let mut connection = lock(&self.connection);
            loop {
                let ended = drain(&mut connection, room, &mut taken, &mut put)?;
                if ended || taken == room {
                    return Ok(taken);
                }
                if incoming.is_empty() {
                    break;
                }
                if let Err(error) = feed(&mut connection, &mut incoming) {
                    drop(connection);
                    self.alert(fd);
                    return Err(error);
                }
            }
            drop(connection);
            if taken > 0 {
                return Ok(taken);
            }
            let deadline = *lock(&self.deadline);
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(ErrorKind::WouldBlock.into());
            }
            // Without close_notify, as many clients end.
            if incoming.fill(fd)? == 0 {
                return Ok(0);
            }
        }
    }

    /// Seals and sends some of `parts`; what is left unsent of that is sent before anything else.
    pub(super) fn send(
        &self,
        fd: &OwnedFd,
        parts: &[IoSlice<'_>],
        wait: bool,
    ) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        self.send_sealed(fd, &mut outgoing, wait)?;
        self.seal(fd, &mut outgoing, parts, wait)
    }

    /// Tells the client what was wrong, unless somebody is sending or it takes nothing just now.
    fn alert(&self, fd: &OwnedFd) {
        if let Ok(mut outgoing) = self.outgoing.try_lock() {
            let _ = self.seal(fd, &mut outgoing, &[], false);
        }
    }

    /// Seals some of `parts` and sends it, together with what TLS itself has to say. Without `wait`, what the socket does not take
    /// is kept.
    fn seal(
        &self,
        fd: &OwnedFd,
        outgoing: &mut Outgoing,
        parts: &[IoSlice<'_>],
        wait: bool,
    ) -> io::Result<usize> {
        let mut accepted = 0;
        {
            let mut connection = lock(&self.connection);
            let mut room = SEAL;
            let mut chosen = Vec::with_capacity(parts.len());
            for part in parts {
                let part = part.get(..part.len().min(room)).unwrap_or_default();
                room -= part.len();
                if !part.is_empty() {
                    chosen.push(IoSlice::new(part));
                }
            }
            if !chosen.is_empty() {
                accepted = connection.writer().write_vectored(&chosen)?;
            }
            while connection.wants_write() {
                connection.write_tls(&mut outgoing.bytes)?;
            }
        }
        match self.send_sealed(fd, outgoing, wait) {
            Err(error) if !wait && error.kind() == ErrorKind::WouldBlock => Ok(accepted),
            other => other.map(|()| accepted),
        }
    }

    /// Sends what is sealed and was left.
    pub(super) fn flush(&self, fd: &OwnedFd, wait: bool) -> io::Result<()> {
        if !self.has_unsent() {
            return Ok(());
        }
        self.send_sealed(fd, &mut lock(&self.outgoing), wait)
    }

    /// True when [`TlsStream::flush`] has something to do.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent.load(Ordering::Acquire)
    }

    fn send_sealed(&self, fd: &OwnedFd, outgoing: &mut Outgoing, wait: bool) -> io::Result<()> {
        let flags = if wait {
            SendFlags::NOSIGNAL
        } else {
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT
        };
        loop {
            let rest = outgoing.bytes.get(outgoing.sent..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match net::send(fd, rest, flags) {
                Ok(sent) => outgoing.sent += sent,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.unsent.store(true, Ordering::Release);
                    return Err(error.into());
                }
            }
        }
        outgoing.sent = 0;
        outgoing.bytes.clear();
        outgoing.bytes.shrink_to(KEEP);
        self.unsent.store(false, Ordering::Release);
        Ok(())
    }

    /// Tells the client that nothing more comes (close_notify), unless it takes nothing just now.
    pub(super) fn goodbye(&self, fd: &OwnedFd) {
        lock(&self.connection).send_close_notify();
        self.alert(fd);
    }
}

impl Incoming {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Receives at least one byte into the empty buffer; 0 is the end.
    fn fill(&mut self, fd: &OwnedFd) -> io::Result<usize> {
        self.start = 0;
        self.end = 0;
        loop {
            match net::recv(fd, &mut *self.bytes, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok((received, _)) => {
                    self.end = received;
                    return Ok(received);
                }
            }
        }
    }
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = self.bytes.get(self.start..self.end).unwrap_or_default();
        let count = filled.read(buf)?;
        self.start += count;
        Ok(count)
    }
}

/// Brings some ciphertext into the state machine.
fn feed(connection: &mut ServerConnection, incoming: &mut Incoming) -> io::Result<()> {
    if connection.read_tls(incoming)? == 0 {
        // After close_notify nothing is taken.
        incoming.start = incoming.end;
    }
    connection.process_new_packets().map_err(fault)?;
    Ok(())
}

/// Takes plaintext out of the state machine. True: the client has said that nothing more comes.
fn drain(
    connection: &mut ServerConnection,
    room: usize,
    taken: &mut usize,
    put: &mut impl FnMut(usize, &[u8]),
) -> io::Result<bool> {
    let mut reader = connection.reader();
    while *taken < room {
        let chunk = match reader.fill_buf() {
            Ok([]) => return Ok(true),
            Ok(chunk) => chunk,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        };
        let count = chunk.len().min(room - *taken);
        put(*taken, chunk.get(..count).unwrap_or_default());
        *taken += count;
        reader.consume(count);
    }
    Ok(false)
}
