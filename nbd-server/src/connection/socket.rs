//! One connected stream socket, unix, TCP or vsock: receive, gather-send, time limits, and the cut. From the moment
//! that TLS starts on it, all that it receives and sends goes through that. It knows nothing of NBD.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};
use rustls::ServerConnection;

use super::tls::TlsStream;
use crate::access::CertificateNames;

/// Room for answers in the kernel, so that a worker seldom finds the socket full. The kernel cuts it to `net.core.wmem_max`.
const UNIX_SEND_BUFFER: usize = 1 << 20;

/// A connected socket in blocking mode, shared by the threads of its connection.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// How to receive much at once.
    receive: RecvFlags,
    cut: AtomicBool,
    /// Empty in the clear: to look costs a load and no lock.
    tls: OnceLock<TlsStream>,
}

impl Socket {
    /// Wraps a connected stream socket and sets its options. None of them is needed to be correct, so that failures are left alone.
    pub fn new(fd: OwnedFd) -> Self {
        if sockopt::set_tcp_nodelay(&fd, true).is_ok() {
            // A peer that is gone without a word must not hold its attachment for ever.
            let _ = sockopt::set_socket_keepalive(&fd, true);
        } else {
            // TCP sizes its buffers by itself, a unix socket doesn't. vsock takes no notice.
            let _ = sockopt::set_socket_send_buffer_size(&fd, UNIX_SEND_BUFFER);
        }
        // It spares a call per piece. vsock refuses it (ENOMEM) for more than its buffer holds.
        let receive = match sockopt::socket_domain(&fd) {
            Ok(AddressFamily::VSOCK) => RecvFlags::empty(),
            _ => RecvFlags::WAITALL,
        };
        Self {
            fd,
            receive,
            cut: AtomicBool::new(false),
            tls: OnceLock::new(),
        }
    }

    /// Starts TLS: nothing but its handshake goes through the socket until [`Socket::shake`] has said that it has ended. To be called
    /// once, by the thread that receives, while nobody sends.
    pub fn start_tls(&self, connection: ServerConnection) {
        let _ = self.tls.set(TlsStream::new(connection));
    }

    /// One step of the TLS handshake. True: it has ended, and what is received and sent from now on is protected.
    ///
    /// # Errors
    /// As recv(2) and send(2); `InvalidData` when the client breaks the protocol or its certificate is refused.
    pub fn shake(&self) -> io::Result<bool> {
        self.tls.get().map_or(Ok(true), |tls| tls.shake(&self.fd))
    }

    /// The names in the client's certificate, if TLS has verified one.
    pub fn certificate(&self) -> Option<CertificateNames> {
        self.tls.get()?.client()
    }

    /// Tells the client that nothing more comes, where the transport has words for that. Never waits.
    pub fn goodbye(&self) {
        if let Some(tls) = self.tls.get() {
            tls.goodbye(&self.fd);
        }
    }

    /// True when what is sent goes out as it is.
    pub fn is_clear(&self) -> bool {
        self.tls.get().is_none()
    }

    /// Receives at least one byte, behind what `buf` holds and as far as it has room; 0 is the end of the stream.
    ///
    /// # Errors
    /// As recv(2); `WouldBlock` when the time limit has passed.
    pub fn recv(&self, buf: &mut Vec<u8>) -> io::Result<usize> {
        if let Some(tls) = self.tls.get() {
            let room = buf.capacity() - buf.len();
            return tls.recv(&self.fd, room, |_, piece| buf.extend_from_slice(piece));
        }
        loop {
            match net::recv(&self.fd, spare_capacity(buf), RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok((received, _)) => return Ok(received),
            }
        }
    }

    /// As [`Socket::recv`], without waiting: `None` if nothing is there. Only in the clear.
    ///
    /// # Errors
    /// As recv(2).
    pub fn try_recv(&self, buf: &mut Vec<u8>) -> io::Result<Option<usize>> {
        match net::recv(&self.fd, spare_capacity(buf), RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
            Ok((received, _)) => Ok(Some(received)),
        }
    }

    /// As [`Socket::recv`], into memory that holds nothing yet. The bytes at the front of `buf`, as many as are returned, are then initialised.
    ///
    /// # Errors
    /// As [`Socket::recv`].
    pub fn recv_uninit(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if let Some(tls) = self.tls.get() {
            return tls.recv(&self.fd, buf.len(), |at, piece| {
                let target = buf.iter_mut().skip(at);
                for (target, byte) in target.zip(piece) {
                    target.write(*byte);
                }
            });
        }
        loop {
            // It returns early at the end of the stream, whatever the flags.
            match net::recv(&self.fd, &mut *buf, self.receive) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(((initialised, _), _)) => return Ok(initialised.len()),
            }
        }
    }

    /// Sends some of the bytes of `parts`. `wait`: block while the peer takes nothing.
    ///
    /// # Errors
    /// As sendmsg(2); `WouldBlock` when nothing could be sent without waiting, or when the time limit has passed.
    pub fn send(&self, parts: &[IoSlice<'_>], wait: bool) -> io::Result<usize> {
        if let Some(tls) = self.tls.get() {
            return tls.send(&self.fd, parts, wait);
        }
        let flags = if wait {
            SendFlags::NOSIGNAL
        } else {
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT
        };
        loop {
            match net::sendmsg(&self.fd, parts, &mut SendAncillaryBuffer::default(), flags) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }

    /// True when some of what [`Socket::send`] has taken waits inside for the socket, which only happens under TLS and without
    /// waiting. Then [`Socket::flush`] has to be called until it succeeds.
    pub fn has_unsent(&self) -> bool {
        self.tls.get().is_some_and(TlsStream::has_unsent)
    }

    /// Sends what [`Socket::has_unsent`] tells of.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn flush(&self, wait: bool) -> io::Result<()> {
        self.tls
            .get()
            .map_or(Ok(()), |tls| tls.flush(&self.fd, wait))
    }

    /// Sends `len` bytes of `file` from `offset` on, blocking, without copying them into this process. Only in the clear.
    ///
    /// # Errors
    /// As sendfile(2); `UnexpectedEof` when the file has become shorter.
    pub fn send_file(&self, file: &File, mut offset: u64, len: usize) -> io::Result<()> {
        let end = offset + len as u64;
        while offset < end {
            let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
            match sendfile(&self.fd, file, Some(&mut offset), left) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, blocking.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub fn send_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let sent = self.send(&[IoSlice::new(bytes)], true)?;
            bytes = bytes.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Limits how long each receive and send may wait; `None` is without limit.
    ///
    /// # Errors
    /// As setsockopt(2).
    pub fn set_time_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        if let Some(tls) = self.tls.get() {
            tls.set_deadline(limit.and_then(|limit| Instant::now().checked_add(limit)));
        }
        sockopt::set_socket_timeout(&self.fd, Timeout::Recv, limit)?;
        sockopt::set_socket_timeout(&self.fd, Timeout::Send, limit)?;
        Ok(())
    }

    /// Ends the connection at once, in both directions: whoever waits in a receive or a send returns.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        // It fails when the peer is gone already, which is what is wanted.
        let _ = net::shutdown(&self.fd, Shutdown::Both);
    }

    /// True after [`Socket::cut`].
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// Takes no further bytes: a receive that waits returns the end of the stream. Answers can still be sent.
    pub fn stop_receiving(&self) {
        let _ = net::shutdown(&self.fd, Shutdown::Read);
    }
}
