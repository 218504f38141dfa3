//! Who is at the other end of a connection, as far as the transport vouches for it.

use std::fmt;
use std::net::IpAddr;

/// The other end of a socket, by what the kernel says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// A process of this user, at a unix socket (SO_PEERCRED).
    Unix {
        /// Its user id when it connected.
        uid: u32,
    },
    /// A host, at TCP.
    Ip(IpAddr),
    /// A virtual machine or its host, at vsock.
    Vsock {
        /// Its context id.
        cid: u32,
    },
    /// The kernel did not say.
    Unknown,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { uid } => write!(f, "uid:{uid}"),
            Self::Ip(address) => write!(f, "ip:{}", address.to_canonical()),
            Self::Vsock { cid } => write!(f, "cid:{cid}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// The names in a certificate that has been verified.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CertificateNames {
    /// The common name of the subject.
    pub common_name: Option<String>,
    /// DNS names among the alternative names.
    pub dns: Vec<String>,
    /// URIs among the alternative names.
    pub uris: Vec<String>,
}

impl CertificateNames {
    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        let common = self.common_name.iter();
        common
            .chain(&self.dns)
            .chain(&self.uris)
            .map(String::as_str)
    }
}

/// One client, as access rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The other end of the socket.
    pub peer: Peer,
    /// Names in its certificate, if TLS verified one.
    pub certificate: Option<CertificateNames>,
}

impl fmt::Display for Client {
    /// The certificate's first name, or else the peer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self
            .certificate
            .as_ref()
            .and_then(|names| names.all().next());
        match name {
            Some(name) => f.write_str(name),
            None => self.peer.fmt(f),
        }
    }
}
