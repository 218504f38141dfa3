//! A byte stream to a server below: TCP or a unix socket. Knows no protocol.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long it may take for each step of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection on which nothing is said is asked whether its other end still exists after so long, and so often.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Many NFS servers believe in ports that only root can have.
const RESERVED_PORTS: std::ops::Range<u16> = 665..1024;

/// An open connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects over TCP, to the first address of `host` that answers. `reserved`: from a port that only root can have, if possible.
    /// Until [`Stream::shake_hands`] is over reads and writes end after 10 seconds.
    pub fn tcp(host: &str, port: u16, reserved: bool) -> io::Result<Self> {
        let mut last = None;
        for address in (host, port).to_socket_addrs()? {
            match connect(address, reserved) {
                Ok(stream) => return Ok(Self::Tcp(stream)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other(format!("{host} has no address"))))
    }

    /// Connects to the unix socket at `path`.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(HANDSHAKE))?;
        stream.set_write_timeout(Some(HANDSHAKE))?;
        Ok(Self::Unix(stream))
    }

    /// The handshake is over: reads end after `tick` from now on, writes wait.
    pub fn settle(&self, tick: Duration) -> io::Result<()> {
        let socket = self.socket();
        socket.set_read_timeout(Some(tick))?;
        socket.set_write_timeout(None)
    }

    /// Another handle of the same connection.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
        })
    }

    /// Ends the connection, for whoever reads or writes.
    pub fn end(&self) {
        // It may have ended already.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn socket(&self) -> SockRef<'_> {
        match self {
            Self::Tcp(stream) => SockRef::from(stream),
            Self::Unix(stream) => SockRef::from(stream),
        }
    }
}

fn connect(address: SocketAddr, reserved: bool) -> io::Result<TcpStream> {
    let new = || {
        Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )
    };
    let mut socket = new()?;
    if reserved && let Some(bound) = bind_reserved(address, new) {
        socket = bound;
    }
    socket.connect_timeout(&address.into(), CONNECT)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE)
            .with_interval(KEEPALIVE),
    )?;
    socket.set_read_timeout(Some(HANDSHAKE))?;
    socket.set_write_timeout(Some(HANDSHAKE))?;
    Ok(socket.into())
}

/// A socket with a port that only root can have; none where this process may not.
fn bind_reserved(address: SocketAddr, new: impl Fn() -> io::Result<Socket>) -> Option<Socket> {
    let any: std::net::IpAddr = if address.is_ipv4() {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv6Addr::UNSPECIFIED.into()
    };
    // From another one each time: those that were used last may not be free yet.
    let count = RESERVED_PORTS.end - RESERVED_PORTS.start;
    let [a, b, ..] = *uuid::Uuid::new_v4().as_bytes();
    let first = u16::from_be_bytes([a, b]) % count;
    for step in 0..count {
        let port = RESERVED_PORTS.start + (first + step) % count;
        let socket = new().ok()?;
        match socket.bind(&SocketAddr::new(any, port).into()) {
            Ok(()) => return Some(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(_) => return None,
        }
    }
    None
}

impl Read for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write_vectored(bufs),
            Self::Unix(stream) => stream.write_vectored(bufs),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
