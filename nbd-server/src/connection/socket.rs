//! One connected stream socket, unix or TCP: receive, gather-send, time limits, and the cut. It knows nothing of NBD.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

/// Room for answers in the kernel, so that a worker seldom finds the socket full. The kernel cuts it to `net.core.wmem_max`.
const UNIX_SEND_BUFFER: usize = 1 << 20;

/// A connected socket in blocking mode, shared by the threads of its connection.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    cut: AtomicBool,
}

impl Socket {
    /// Wraps a connected stream socket and sets its options. None of them is needed to be correct, so that failures are left alone.
    pub fn new(fd: OwnedFd) -> Self {
        if sockopt::set_tcp_nodelay(&fd, true).is_ok() {
            // A peer that is gone without a word must not hold its attachment for ever.
            let _ = sockopt::set_socket_keepalive(&fd, true);
        } else {
            // TCP sizes its buffers by itself, a unix socket doesn't.
            let _ = sockopt::set_socket_send_buffer_size(&fd, UNIX_SEND_BUFFER);
        }
        Self {
            fd,
            cut: AtomicBool::new(false),
        }
    }

    /// Receives at least one byte; 0 is the end of the stream.
    ///
    /// # Errors
    /// As recv(2); `WouldBlock` when the time limit has passed.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match net::recv(&self.fd, &mut *buf, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok((received, _)) => return Ok(received),
            }
        }
    }

    /// As [`Socket::recv`], into memory that holds nothing yet. The bytes at the front of `buf`, as many as are returned, are then initialised.
    ///
    /// # Errors
    /// As [`Socket::recv`].
    pub fn recv_uninit(&self, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        loop {
            // WAITALL spares a call per piece; it still returns early at the end of the stream.
            match net::recv(&self.fd, &mut *buf, RecvFlags::WAITALL) {
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
