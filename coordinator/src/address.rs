//! Where the checkpoint channel is listened on and connected to: a unix socket or a TCP address.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// `unix:/path/to.sock` or `tcp:address:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum ChannelAddress {
    /// A unix socket.
    Unix(PathBuf),
    /// An IPv4 or IPv6 address and port.
    Tcp(SocketAddr),
}

/// A string that is no [`ChannelAddress`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not an address of a checkpoint channel; write `unix:/path/to.sock` or `tcp:127.0.0.1:7070`"
)]
pub struct BadAddress(String);

impl FromStr for ChannelAddress {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", address)) => address.parse().map(Self::Tcp).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for ChannelAddress {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl fmt::Display for ChannelAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// The two directions of a connected channel.
pub(crate) type Reader = Pin<Box<dyn AsyncRead + Send>>;
pub(crate) type Writer = Pin<Box<dyn AsyncWrite + Send>>;

impl ChannelAddress {
    /// Whether the channel can be reached from other machines. Until it has TLS that must be asked for.
    pub fn is_exposed(&self) -> bool {
        matches!(self, Self::Tcp(address) if !address.ip().is_loopback())
    }

    pub(crate) async fn connect(&self) -> io::Result<(Reader, Writer)> {
        match self {
            Self::Unix(path) => Ok(split(UnixStream::connect(path).await?)),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(split(stream))
            }
        }
    }

    /// Listens. A unix socket is for its owner only; one that a dead process left behind is replaced.
    pub(crate) async fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Unix(path) => {
                if UnixStream::connect(path).await.is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                match std::fs::remove_file(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
                let listener = UnixListener::bind(path)?;
                std::fs::set_permissions(
                    path,
                    std::os::unix::fs::PermissionsExt::from_mode(0o600),
                )?;
                Ok(Listener::Unix(listener, path.clone()))
            }
            Self::Tcp(address) => Ok(Listener::Tcp(TcpListener::bind(address).await?)),
        }
    }
}

fn split<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> (Reader, Writer) {
    let (reader, writer) = tokio::io::split(stream);
    (Box::pin(reader), Box::pin(writer))
}

/// A listening checkpoint channel.
#[derive(Debug)]
pub(crate) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    pub(crate) async fn accept(&self) -> io::Result<(Reader, Writer)> {
        match self {
            Self::Unix(listener, _) => Ok(split(listener.accept().await?.0)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(split(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for text in [
            "unix:/run/epochgate/b.sock",
            "tcp:127.0.0.1:7070",
            "tcp:[::1]:7070",
        ] {
            assert_eq!(
                text.parse::<ChannelAddress>().map(|a| a.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn a_wrong_address_says_what_is_allowed() {
        for text in ["", "host:1", "unix:", "tcp:", "tcp:host", "http://x"] {
            assert!(text.parse::<ChannelAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_tcp_beyond_this_machine_is_exposed() {
        let exposed = |text: &str| text.parse::<ChannelAddress>().map(|a| a.is_exposed());
        assert_eq!(exposed("tcp:0.0.0.0:1"), Ok(true));
        assert_eq!(exposed("tcp:127.0.0.1:1"), Ok(false));
        assert_eq!(exposed("unix:/x"), Ok(false));
    }
}
