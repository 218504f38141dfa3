//! Where an image or a log lies, as configurations say it: a path, or the URL of a server. Pure.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where something lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file, a directory or a block device of this machine.
    Path(PathBuf),
    /// A file or a directory of an NFS server.
    Nfs(NfsPlace),
    /// An export of an NBD server.
    Nbd(NbdPlace),
}

/// A place on an NFS server: `nfs://server/export/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsPlace {
    /// Name or address of the server.
    pub host: String,
    /// Port of NFS; none: the server's portmapper says.
    pub port: Option<u16>,
    /// Port of the mount protocol; none: the server's portmapper says.
    pub mount_port: Option<u16>,
    /// From the root of the server, beginning with a slash.
    pub path: String,
    /// User that the server is told; none: that of this process.
    pub uid: Option<u32>,
    /// Group that the server is told; none: that of this process.
    pub gid: Option<u32>,
    /// How long a request may wait; none: for ever.
    pub patience: Option<Duration>,
    /// The lock of this owner is broken.
    pub break_lock: Option<String>,
}

/// An export of an NBD server: `nbd://host:port/export`, `nbd+unix:///export?socket=/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdPlace {
    /// Where the server listens.
    pub address: NbdAddress,
    /// Name of the export; may be empty.
    pub export: String,
    /// How long a request may wait; none: for ever.
    pub patience: Option<Duration>,
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// TCP.
    Tcp(String, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// What is wrong with a URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{url}\": {what}")]
pub struct PlaceError {
    url: String,
    what: String,
}

const NBD_PORT: u16 = 10809;
const NFS_FORM: &str = "write nfs://server/export/path";
const NBD_FORM: &str = "write nbd://host:port/export or nbd+unix:///export?socket=/path";

impl Place {
    /// Reads what a configuration says. What has no scheme is a path.
    ///
    /// # Errors
    /// [`PlaceError`]
    pub fn parse(text: &Path) -> Result<Self, PlaceError> {
        let Some((scheme, rest)) = text.to_str().and_then(|url| url.split_once("://")) else {
            return Ok(Self::Path(text.to_owned()));
        };
        let fail = |what: String| PlaceError {
            url: text.display().to_string(),
            what,
        };
        match scheme {
            "nfs" => nfs(rest).map(Self::Nfs).map_err(fail),
            "nbd" | "nbd+unix" => nbd(scheme, rest).map(Self::Nbd).map_err(fail),
            "nbds" | "nbds+unix" => Err(fail(
                "TLS to a server below is not there; use nbd:// over a network that is protected otherwise, or a unix socket".to_owned(),
            )),
            // A directory may have such a name.
            _ if scheme.contains('/') => Ok(Self::Path(text.to_owned())),
            _ => Err(fail(format!(
                "storage of the kind {scheme}:// is not known; {NFS_FORM}, {NBD_FORM}, or a path"
            ))),
        }
    }

    /// What tells a place on a server from others, whatever else its URL says; none for a path.
    pub fn server(&self) -> Option<(u64, u64)> {
        let name = match self {
            Self::Path(_) => return None,
            Self::Nfs(place) => place.to_string(),
            Self::Nbd(place) => place.to_string(),
        };
        // No device has this number.
        Some((u64::MAX, xxhash_rust::xxh3::xxh3_64(name.as_bytes())))
    }

    /// Whether `text` is the URL of a server.
    pub fn is_url(text: &Path) -> bool {
        let schemes = ["nfs://", "nbd://", "nbd+unix://", "nbds://", "nbds+unix://"];
        let text = OsStr::as_encoded_bytes(text.as_os_str());
        schemes
            .iter()
            .any(|scheme| text.starts_with(scheme.as_bytes()))
    }
}

impl fmt::Display for NfsPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nfs://{}{}", self.host, self.path)
    }
}

impl fmt::Display for NbdPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            NbdAddress::Tcp(host, port) => write!(f, "nbd://{host}:{port}/{}", self.export),
            NbdAddress::Unix(path) => {
                write!(f, "nbd+unix:///{}?socket={}", self.export, path.display())
            }
        }
    }
}

fn nfs(rest: &str) -> Result<NfsPlace, String> {
    let url = Url::parse(rest)?;
    let (host, port) = host_port(url.authority)?;
    let host = host.ok_or_else(|| format!("the server is missing; {NFS_FORM}"))?;
    let path = normal(&url.path).ok_or_else(|| format!("the path is missing; {NFS_FORM}"))?;
    let mut place = NfsPlace {
        host,
        port,
        mount_port: None,
        path,
        uid: None,
        gid: None,
        patience: None,
        break_lock: None,
    };
    for (key, value) in &url.query {
        match key.as_str() {
            "nfsport" => place.port = Some(number(key, value)?),
            "mountport" => place.mount_port = Some(number(key, value)?),
            "uid" => place.uid = Some(number(key, value)?),
            "gid" => place.gid = Some(number(key, value)?),
            "patience_ms" => place.patience = patience(key, value)?,
            "break_lock" => place.break_lock = Some(value.clone()),
            "version" if value == "3" => {}
            "version" => return Err("only version=3 of NFS is spoken".to_owned()),
            _ => {
                return Err(format!(
                    "'{key}' is not known here; there are patience_ms, nfsport, mountport, uid, gid, break_lock and version"
                ));
            }
        }
    }
    Ok(place)
}

fn nbd(scheme: &str, rest: &str) -> Result<NbdPlace, String> {
    let url = Url::parse(rest)?;
    let mut socket = None;
    let mut wait = None;
    for (key, value) in &url.query {
        match key.as_str() {
            "socket" => socket = Some(PathBuf::from(value)),
            "patience_ms" => wait = patience(key, value)?,
            _ => {
                return Err(format!(
                    "'{key}' is not known here; there are patience_ms and socket"
                ));
            }
        }
    }
    let (host, port) = host_port(url.authority)?;
    let address = match (scheme, host, socket) {
        ("nbd", Some(host), None) => NbdAddress::Tcp(host, port.unwrap_or(NBD_PORT)),
        ("nbd+unix", None, Some(socket)) => NbdAddress::Unix(socket),
        _ => return Err(NBD_FORM.to_owned()),
    };
    let export = url.path.strip_prefix('/').unwrap_or(&url.path).to_owned();
    Ok(NbdPlace {
        address,
        export,
        patience: wait,
    })
}

/// What follows the scheme, taken apart.
struct Url<'a> {
    authority: &'a str,
    path: String,
    query: Vec<(String, String)>,
}

impl<'a> Url<'a> {
    fn parse(rest: &'a str) -> Result<Self, String> {
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let slash = place.find('/').unwrap_or(place.len());
        let (authority, path) = place.split_at_checked(slash).unwrap_or((place, ""));
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let query = pairs.map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((key.to_owned(), unescape(value)?))
        });
        Ok(Self {
            authority,
            path: unescape(path)?,
            query: query.collect::<Result<_, String>>()?,
        })
    }
}

fn host_port(authority: &str) -> Result<(Option<String>, Option<u16>), String> {
    if authority.is_empty() {
        return Ok((None, None));
    }
    let (host, port) = match authority.rsplit_once(':') {
        // The colon may be one of an IPv6 address in brackets.
        Some((host, port)) if !port.ends_with(']') => (host, Some(number("the port", port)?)),
        _ => (authority, None),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err("write an IPv6 address in brackets".to_owned());
    }
    Ok((Some(bare.unwrap_or(host).to_owned()), port))
}

/// A path without empty parts; none if nothing is left, or if it leads upwards.
fn normal(path: &str) -> Option<String> {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    (!parts.is_empty() && !parts.contains(&"..")).then(|| format!("/{}", parts.join("/")))
}

fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("{key} is no number that fits: '{value}'"))
}

fn patience(key: &str, value: &str) -> Result<Option<Duration>, String> {
    let ms: u64 = number(key, value)?;
    Ok((ms > 0).then(|| Duration::from_millis(ms)))
}

pub(super) fn unescape(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' has a % that is not followed by two hexadecimal digits");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        rest = tail;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digits = std::str::from_utf8(digits).map_err(|_| wrong())?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| format!("'{text}' is no UTF-8"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn parse(text: &str) -> Result<Place, PlaceError> {
        Place::parse(Path::new(text))
    }

    #[test]
    fn paths_stay_paths() {
        for path in ["/srv/disk.raw", "disk", "a/b://c", "/dev/vdb"] {
            assert_eq!(parse(path).unwrap(), Place::Path(path.into()));
            assert!(!Place::is_url(Path::new(path)));
        }
    }

    #[test]
    fn urls_come_apart() {
        let url = "nfs://[::1]:2049//export/a%20b/disk.raw?mountport=20048&patience_ms=5000&uid=3";
        let Place::Nfs(place) = parse(url).unwrap() else {
            panic!("no NFS")
        };
        assert_eq!((place.host.as_str(), place.port), ("::1", Some(2049)));
        assert_eq!(place.path, "/export/a b/disk.raw");
        assert_eq!((place.mount_port, place.uid), (Some(20048), Some(3)));
        assert_eq!(place.patience, Some(Duration::from_secs(5)));
        let expected = NbdPlace {
            address: NbdAddress::Tcp("host".into(), 10809),
            export: "a/b".into(),
            patience: None,
        };
        assert_eq!(
            parse("nbd://host/a/b?patience_ms=0").unwrap(),
            Place::Nbd(expected)
        );
        let unix = parse("nbd+unix:///?socket=/run/q.sock").unwrap();
        let expected = NbdPlace {
            address: NbdAddress::Unix("/run/q.sock".into()),
            export: String::new(),
            patience: None,
        };
        assert_eq!(unix, Place::Nbd(expected));
    }

    #[test]
    fn what_can_not_be_is_refused() {
        for url in [
            "nfs:///export/disk",
            "nfs://server",
            "nfs://server/a/../b",
            "nfs://server/a?version=4",
            "nfs://server/a?x=1",
            "nfs://::1/a",
            "nfs://server/%zz",
            "nbd:///export",
            "nbd://host/e?socket=/s",
            "nbd+unix:///e",
            "nbds://host/e",
            "iscsi://host/1",
            "nbd://host:99999/e",
        ] {
            assert!(parse(url).is_err(), "{url}");
        }
    }
}
