//! The addresses that a server listens on, as people write them: `unix:/path` and `tcp:host:port`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// TCP.
    Tcp {
        /// `host:port`; port 0 lets the system choose.
        host_port: String,
        /// Listen also where others than this machine can connect, though nothing protects the connection.
        insecure: bool,
    },
}

/// An address that is neither `unix:PATH` nor `tcp:HOST:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no address to listen on; write unix:/path/to/socket or tcp:host:port")]
pub struct ParseAddressError(String);

impl ListenAddress {
    /// TCP on `host:port`, on this machine only.
    pub fn tcp(host_port: impl Into<String>) -> Self {
        Self::Tcp {
            host_port: host_port.into(),
            insecure: false,
        }
    }

    /// The same address with leave to listen beyond this machine without protection, or not.
    #[must_use]
    pub fn with_insecure(self, insecure: bool) -> Self {
        match self {
            Self::Tcp { host_port, .. } => Self::Tcp {
                host_port,
                insecure,
            },
            unix @ Self::Unix(_) => unix,
        }
    }
}

impl FromStr for ListenAddress {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseAddressError(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", host_port)) => {
                let (host, port) = host_port.rsplit_once(':').ok_or_else(error)?;
                if host.is_empty() || port.parse::<u16>().is_err() {
                    return Err(error());
                }
                Ok(Self::tcp(host_port))
            }
            _ => Err(error()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host_port, .. } => write!(f, "tcp:{host_port}"),
        }
    }
}

/// An address that is listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoundAddress {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// TCP with the port that is really used.
    Tcp(SocketAddr),
}

impl BoundAddress {
    /// The NBD URI of an export, for `nbdinfo`, `qemu-img` and others. The name may be empty.
    pub fn uri(&self, export: &str) -> String {
        let export = escape(export);
        match self {
            Self::Unix(path) => {
                format!(
                    "nbd+unix:///{export}?socket={}",
                    escape(&path.to_string_lossy())
                )
            }
            Self::Tcp(address) => format!("nbd://{address}/{export}"),
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// Percent-encodes all but what may stand in a path and in a query.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' | b'~' | b'@' => {
                escaped.push(char::from(byte));
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["unix:/run/e.sock", "tcp:localhost:10809", "tcp:[::1]:0"] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "/run/e.sock",
            "unix:",
            "tcp:10809",
            "tcp:host:",
            "tcp:host:x",
            "udp:h:1",
        ] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_uri_escapes_what_would_end_it() {
        let bound = BoundAddress::Unix("/tmp/a b&c".into());
        assert_eq!(
            bound.uri("g/d@o?"),
            "nbd+unix:///g/d@o%3F?socket=/tmp/a%20b%26c"
        );
    }
}
