//! The addresses that a server listens on, as people write them: `unix:/path`, `tcp:host:port`, `vsock:cid:port` and
//! `systemd:number`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The CID by which a machine reaches itself (`VMADDR_CID_LOCAL`).
const VSOCK_THIS_MACHINE: u32 = 1;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix socket at this path.
    Unix(PathBuf),
    /// TCP.
    Tcp {
        /// `host:port`, an IPv6 address in brackets; port 0 lets the system choose.
        host_port: String,
        /// Listen also where others than this machine can connect, though nothing protects the connection.
        insecure: bool,
    },
    /// vsock: VMs on this machine, their host, and processes beside the server.
    Vsock {
        /// The context id to be reached by; none: any that this machine has.
        cid: Option<u32>,
        /// Port 0 lets the system choose.
        port: u32,
    },
    /// A socket that the service manager has opened, counted from 0 (systemd's socket activation).
    Systemd {
        /// Its number.
        number: usize,
        /// As for TCP, if it is one.
        insecure: bool,
    },
}

/// An address that is none of those that can be listened on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no address to listen on; write unix:/path/to/socket, tcp:host:port (IPv6 in brackets: tcp:[::1]:10809), \
     vsock:*:10809 or vsock:CID:10809, or systemd:0 for a socket of systemd's"
)]
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
            Self::Systemd { number, .. } => Self::Systemd { number, insecure },
            // They don't leave this machine.
            local @ (Self::Unix(_) | Self::Vsock { .. }) => local,
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
                // An IPv6 address without brackets would leave open which colon begins the port.
                let bracketed = host.starts_with('[') && host.ends_with(']');
                let unclear = host.contains(':') && !bracketed;
                if host.is_empty() || unclear || port.parse::<u16>().is_err() {
                    return Err(error());
                }
                Ok(Self::tcp(host_port))
            }
            Some(("vsock", cid_port)) => {
                let (cid, port) = cid_port.split_once(':').ok_or_else(error)?;
                // The highest number stands for "any" in both.
                let number = |text: &str| text.parse().ok().filter(|&number| number != u32::MAX);
                let cid = match cid {
                    "*" => None,
                    cid => Some(number(cid).ok_or_else(error)?),
                };
                let port = number(port).ok_or_else(error)?;
                Ok(Self::Vsock { cid, port })
            }
            Some(("systemd", number)) => Ok(Self::Systemd {
                number: number.parse().map_err(|_| error())?,
                insecure: false,
            }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host_port, .. } => write!(f, "tcp:{host_port}"),
            Self::Vsock { cid, port } => write_vsock(f, *cid, *port),
            Self::Systemd { number, .. } => write!(f, "systemd:{number}"),
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
    /// vsock with the port that is really used.
    Vsock {
        /// The context id that it is reached by; none: any that this machine has.
        cid: Option<u32>,
        /// The port.
        port: u32,
    },
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
            Self::Vsock { cid, port } => {
                let cid = cid.unwrap_or(VSOCK_THIS_MACHINE);
                format!("nbd+vsock://{cid}:{port}/{export}")
            }
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Vsock { cid, port } => write_vsock(f, *cid, *port),
        }
    }
}

fn write_vsock(f: &mut fmt::Formatter<'_>, cid: Option<u32>, port: u32) -> fmt::Result {
    match cid {
        Some(cid) => write!(f, "vsock:{cid}:{port}"),
        None => write!(f, "vsock:*:{port}"),
    }
}

/// Whether other machines can connect to a socket that is bound to `address`. A mapped IPv4 address counts as what it stands for.
pub(crate) fn is_exposed(address: &SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
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
        for text in [
            "unix:/run/e.sock",
            "tcp:localhost:10809",
            "tcp:[::1]:0",
            "vsock:*:10809",
            "vsock:2:0",
            "systemd:1",
        ] {
            assert_eq!(text.parse::<ListenAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "/run/e.sock",
            "unix:",
            "tcp:10809",
            "tcp:host:",
            "tcp:host:x",
            "tcp:::1:10809",
            "tcp:[::1]",
            "tcp:[::1:10809",
            "udp:h:1",
            "systemd:x",
            "vsock:10809",
            "vsock:*:*",
            "vsock:x:1",
            "vsock:4294967295:1",
            "vsock:*:4294967295",
            "vsock:2:1:1",
        ] {
            assert!(text.parse::<ListenAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_loopback_is_kept_from_other_machines_in_both_families() {
        let exposed = |address: &str| is_exposed(&address.parse().unwrap());
        for local in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(!exposed(local), "{local}");
        }
        for open in [
            "0.0.0.0:1",
            "192.0.2.1:1",
            "[::]:1",
            "[2001:db8::1]:1",
            "[fe80::1]:1",
            "[::ffff:0.0.0.0]:1",
            "[::ffff:192.0.2.1]:1",
            "[::127.0.0.1]:1",
        ] {
            assert!(exposed(open), "{open}");
        }
    }

    #[test]
    fn a_uri_escapes_what_would_end_it() {
        let cid = Some(2);
        let bound = BoundAddress::Vsock { cid, port: 7 };
        assert_eq!(bound.uri("a b"), "nbd+vsock://2:7/a%20b");
        let bound = BoundAddress::Unix("/tmp/a b&c".into());
        assert_eq!(
            bound.uri("g/d@o?"),
            "nbd+unix:///g/d@o%3F?socket=/tmp/a%20b%26c"
        );
    }
}
