//! One listening socket: a unix socket that its owner alone may use and that replaces a dead server's, TCP that stays on this machine
//! unless told otherwise, vsock, or what a service manager has opened.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::access::Peer;

use super::activation;
use super::address::{BoundAddress, ListenAddress, is_exposed};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Any CID, or any port, at vsock (`VMADDR_CID_ANY`, `VMADDR_PORT_ANY`).
const VSOCK_ANY: u32 = u32::MAX;

/// Why an address can't be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there.
    #[error("another server is listening on {path}; stop it or choose another path")]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// There is something else at the path.
    #[error("{path} exists and is not a socket; choose another path or remove it")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// TCP beyond this machine, without leave.
    #[error(
        "{address} can be reached from other machines, and connections are neither encrypted nor authenticated; \
         require TLS, listen on 127.0.0.1, [::1] or a unix socket, or allow it explicitly as insecure"
    )]
    Insecure {
        /// The address as it resolved.
        address: SocketAddr,
    },
    /// The host has no address.
    #[error("{host_port} does not resolve to an address")]
    NoAddress {
        /// As it was written.
        host_port: String,
    },
    /// The system refused.
    #[error("cannot listen on {address}")]
    System {
        /// As it was written.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Kind,
    address: BoundAddress,
}

#[derive(Debug)]
enum Kind {
    Unix {
        listener: UnixListener,
        /// None: whoever has opened it removes it.
        _file: Option<SocketFile>,
    },
    Tcp(TcpListener),
    Vsock(Socket),
}

impl Listener {
    pub(super) fn bind(address: &ListenAddress) -> Result<Self, ListenError> {
        let system = |source| ListenError::System {
            address: address.to_string(),
            source,
        };
        match address {
            ListenAddress::Unix(path) => {
                let (listener, file) = bind_for_owner(path)?;
                let socket = Kind::Unix {
                    listener,
                    _file: Some(file),
                };
                Ok(Self {
                    socket,
                    address: BoundAddress::Unix(path.clone()),
                })
            }
            ListenAddress::Tcp {
                host_port,
                insecure,
            } => {
                let resolved: Vec<SocketAddr> =
                    host_port.to_socket_addrs().map_err(system)?.collect();
                if resolved.is_empty() {
                    return Err(ListenError::NoAddress {
                        host_port: host_port.clone(),
                    });
                }
                let exposed = resolved.iter().find(|address| is_exposed(address));
                if let (Some(&address), false) = (exposed, insecure) {
                    return Err(ListenError::Insecure { address });
                }
                let listener = TcpListener::bind(resolved.as_slice()).map_err(system)?;
                listener.set_nonblocking(true).map_err(system)?;
                let bound = listener.local_addr().map_err(system)?;
                Ok(Self {
                    socket: Kind::Tcp(listener),
                    address: BoundAddress::Tcp(bound),
                })
            }
            ListenAddress::Vsock { cid, port } => {
                let listener = bind_vsock(*cid, *port).map_err(system)?;
                Self::of_vsock(listener).map_err(system)
            }
            ListenAddress::Systemd { number, insecure } => {
                let socket = activation::take(*number).map_err(system)?;
                Self::inherit(socket, *insecure, &system)
            }
        }
    }

    /// Listens on a socket that somebody else has opened and bound.
    fn inherit(
        socket: OwnedFd,
        insecure: bool,
        system: &dyn Fn(io::Error) -> ListenError,
    ) -> Result<Self, ListenError> {
        let listens = sockopt::socket_type(&socket).is_ok_and(|kind| kind == SocketType::STREAM)
            && sockopt::socket_acceptconn(&socket).unwrap_or(false);
        if !listens {
            let message = "it is no stream socket that listens; use ListenStream= and Accept=no";
            return Err(system(io::Error::new(io::ErrorKind::InvalidInput, message)));
        }
        match sockopt::socket_domain(&socket).map_err(|e| system(e.into()))? {
            AddressFamily::UNIX => {
                let listener = UnixListener::from(socket);
                listener.set_nonblocking(true).map_err(system)?;
                let bound = listener.local_addr().map_err(system)?;
                let path = bound.as_pathname().unwrap_or(Path::new("")).to_owned();
                Ok(Self {
                    socket: Kind::Unix {
                        listener,
                        _file: None,
                    },
                    address: BoundAddress::Unix(path),
                })
            }
            AddressFamily::INET | AddressFamily::INET6 => {
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true).map_err(system)?;
                let address = listener.local_addr().map_err(system)?;
                if is_exposed(&address) && !insecure {
                    return Err(ListenError::Insecure { address });
                }
                Ok(Self {
                    socket: Kind::Tcp(listener),
                    address: BoundAddress::Tcp(address),
                })
            }
            AddressFamily::VSOCK => {
                let listener = Socket::from(socket);
                listener.set_nonblocking(true).map_err(system)?;
                Self::of_vsock(listener).map_err(system)
            }
            _ => {
                let message = "it is neither a unix, a TCP nor a vsock socket";
                Err(system(io::Error::new(io::ErrorKind::InvalidInput, message)))
            }
        }
    }

    fn of_vsock(listener: Socket) -> io::Result<Self> {
        let (cid, port) = vsock_of(&listener.local_addr()?)?;
        let cid = (cid != VSOCK_ANY).then_some(cid);
        Ok(Self {
            socket: Kind::Vsock(listener),
            address: BoundAddress::Vsock { cid, port },
        })
    }

    pub(super) fn address(&self) -> &BoundAddress {
        &self.address
    }

    /// The next connection, who is at its other end, and what to call it in messages.
    pub(super) fn accept(&self) -> io::Result<(OwnedFd, Peer, String)> {
        match &self.socket {
            Kind::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                let peer = match sockopt::socket_peercred(&stream) {
                    Ok(process) => Peer::Unix {
                        uid: process.uid.as_raw(),
                    },
                    Err(_) => Peer::Unknown,
                };
                Ok((stream.into(), peer, format!("{} ({peer})", self.address)))
            }
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((stream.into(), Peer::Ip(peer.ip()), peer.to_string()))
            }
            Kind::Vsock(listener) => {
                let (stream, peer) = listener.accept()?;
                let (cid, port) = vsock_of(&peer)?;
                let name = format!("vsock:{cid}:{port}");
                Ok((stream.into(), Peer::Vsock { cid }, name))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Kind::Unix { listener, .. } => listener.as_fd(),
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Vsock(listener) => listener.as_fd(),
        }
    }
}

fn bind_vsock(cid: Option<u32>, port: u32) -> io::Result<Socket> {
    let port = if port == 0 { VSOCK_ANY } else { port };
    let socket = Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    socket.bind(&SockAddr::vsock(cid.unwrap_or(VSOCK_ANY), port))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn vsock_of(address: &SockAddr) -> io::Result<(u32, u32)> {
    let address = address.as_vsock_address();
    address.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Removes the socket of a server that is dead; a path without anything is fine as well.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let system = |source| ListenError::System {
        address: format!("unix:{}", path.display()),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system(error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(ListenError::NotASocket {
            path: path.to_owned(),
        });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(system)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Whatever else it says, somebody is there.
        Ok(_) | Err(_) => Err(ListenError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// A unix socket that its owner alone may use, in the place of a dead server's.
pub(crate) fn bind_for_owner(path: &Path) -> Result<(UnixListener, SocketFile), ListenError> {
    remove_stale(path)?;
    bind_unix(path).map_err(|source| ListenError::System {
        address: format!("unix:{}", path.display()),
        source,
    })
}

fn bind_unix(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &address)?;
    let file = SocketFile::of(path)?;
    // Between bind and listen nobody can connect: the mode is set before anybody can use it.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listen(&socket, BACKLOG)?;
    Ok((UnixListener::from(socket), file))
}

/// The socket's file. It is removed on drop, if it is still this one and not that of a server which has replaced this one.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|now| now.dev() == self.device && now.ino() == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}
