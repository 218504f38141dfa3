//! One listening socket: a unix socket that its owner alone may use and that replaces a dead server's, or TCP that stays on this machine
//! unless told otherwise.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use super::address::{BoundAddress, ListenAddress};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

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
         listen on 127.0.0.1 or a unix socket, or allow it explicitly as insecure"
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
        _file: SocketFile,
    },
    Tcp(TcpListener),
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
                    _file: file,
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
                let exposed = resolved.iter().find(|address| !address.ip().is_loopback());
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
        }
    }

    pub(super) fn address(&self) -> &BoundAddress {
        &self.address
    }

    /// The next connection, and what to call it in messages.
    pub(super) fn accept(&self) -> io::Result<(OwnedFd, String)> {
        match &self.socket {
            Kind::Unix { listener, .. } => {
                let (stream, _) = listener.accept()?;
                Ok((stream.into(), self.address.to_string()))
            }
            Kind::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                Ok((stream.into(), peer.to_string()))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Kind::Unix { listener, .. } => listener.as_fd(),
            Kind::Tcp(listener) => listener.as_fd(),
        }
    }
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
