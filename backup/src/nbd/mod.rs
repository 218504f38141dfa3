//! The side of NBD that reads: attaches to an export with the metadata contexts that are wanted, reads with several requests under way, and asks
//! which parts have changed and which are zeros. Blocking, without TLS.

mod handshake;
mod replies;

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nbd_server::protocol::{REQUEST_LEN, REQUEST_MAGIC, command};

/// Where the gateway serves its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nbd {
    /// A unix socket.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String),
}

impl FromStr for Nbd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let address = text.strip_prefix("tcp:").unwrap_or(text);
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(address.to_owned()))
            }
            _ => Err(format!(
                "'{text}' is no address; write unix:PATH or HOST:PORT"
            )),
        }
    }
}

/// Silence of the gateway after which it is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Reads under way.
const DEPTH: usize = 4;

/// What both kinds of sockets can do.
trait Socket: Read + Write + Send {
    fn same(&self) -> io::Result<Box<dyn Socket>>;
}

impl Socket for UnixStream {
    fn same(&self) -> io::Result<Box<dyn Socket>> {
        Ok(Box::new(self.try_clone()?))
    }
}

impl Socket for TcpStream {
    fn same(&self) -> io::Result<Box<dyn Socket>> {
        Ok(Box::new(self.try_clone()?))
    }
}

/// A part of a disk and what is so for all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub len: u64,
    pub flags: u32,
}

/// An attachment to an export.
pub(crate) struct Attachment {
    input: BufReader<Box<dyn Socket>>,
    output: Box<dyn Socket>,
    pub size: u64,
    /// Which contexts were granted, and their numbers on the wire.
    contexts: Vec<(String, u32)>,
    cookie: u64,
}

impl Attachment {
    /// Attaches. A context that is not granted is no error: see [`Attachment::has`].
    pub fn open(at: &Nbd, export: &str, contexts: &[String]) -> io::Result<Self> {
        let mut socket: Box<dyn Socket> = match at {
            Nbd::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Nbd::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        };
        let agreed = handshake::attach(&mut *socket, export, contexts)?;
        Ok(Self {
            input: BufReader::with_capacity(256 << 10, socket.same()?),
            output: socket,
            size: agreed.size,
            contexts: agreed.contexts,
            cookie: 0,
        })
    }

    /// Whether a context was granted.
    pub fn has(&self, context: &str) -> bool {
        self.contexts.iter().any(|(name, _)| name == context)
    }

    fn send(&mut self, kind: u16, offset: u64, len: u32) -> io::Result<u64> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(REQUEST_LEN);
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        self.output.write_all(&request)?;
        Ok(self.cookie)
    }

    /// Reads all of `ranges`; `done` gets the number of each and its data, in any order.
    pub fn read<E: From<io::Error>>(
        &mut self,
        ranges: &[(u64, u32)],
        mut done: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut waiting: Vec<(u64, usize, replies::Reading)> = Vec::new();
        let mut next = ranges.iter().enumerate();
        loop {
            while waiting.len() < DEPTH
                && let Some((number, (offset, len))) = next.next()
            {
                let cookie = self.send(command::READ, *offset, *len)?;
                waiting.push((cookie, number, replies::Reading::new(*offset, *len)));
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let chunk = replies::header(&mut self.input)?;
            let found = waiting
                .iter()
                .position(|(cookie, _, _)| *cookie == chunk.cookie);
            let found = found.ok_or_else(|| replies::garbled("it answers what was not asked"))?;
            let Some((_, number, reading)) = waiting.get_mut(found) else {
                continue;
            };
            reading.take(&mut self.input, &chunk)?;
            if chunk.last {
                done(*number, reading.finish()?)?;
                waiting.swap_remove(found);
            }
        }
    }

    /// What is so for a range, by each of `contexts`; all of the range is covered. A context that was not granted has no extents.
    pub fn status(
        &mut self,
        offset: u64,
        len: u64,
        contexts: &[&str],
    ) -> io::Result<Vec<Vec<Extent>>> {
        let mut extents = vec![Vec::new(); contexts.len()];
        let mut reached: Vec<u64> = vec![offset; contexts.len()];
        let end = offset + len;
        let granted: Vec<Option<u32>> = contexts
            .iter()
            .map(|name| self.contexts.iter().find(|(has, _)| has == name))
            .map(|found| found.map(|(_, id)| *id))
            .collect();
        loop {
            let lowest = reached.iter().zip(&granted).filter(|(_, id)| id.is_some());
            let Some(from) = lowest.map(|(at, _)| *at).min().filter(|from| *from < end) else {
                return Ok(extents);
            };
            let want = u32::try_from(end - from).unwrap_or(u32::MAX);
            let cookie = self.send(command::BLOCK_STATUS, from, want)?;
            let mut moved = false;
            loop {
                let chunk = replies::header(&mut self.input)?;
                if chunk.cookie != cookie {
                    return Err(replies::garbled("it answers what was not asked"));
                }
                let last = chunk.last;
                if let Some((id, found)) = replies::extents(&mut self.input, &chunk)? {
                    let slot = granted.iter().position(|has| *has == Some(id));
                    let slot =
                        slot.ok_or_else(|| replies::garbled("a context nobody asked for"))?;
                    let mut at = from;
                    for (len, flags) in found {
                        let next = at.saturating_add(len).min(end);
                        // What is known already is not taken twice.
                        let start = at.max(reached.get(slot).copied().unwrap_or(end));
                        if start < next
                            && let (Some(list), Some(reached)) =
                                (extents.get_mut(slot), reached.get_mut(slot))
                        {
                            list.push(Extent {
                                offset: start,
                                len: next - start,
                                flags,
                            });
                            *reached = next;
                            moved = true;
                        }
                        at = next;
                    }
                }
                if last {
                    break;
                }
            }
            if !moved {
                return Err(replies::garbled("it does not say what is there"));
            }
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // A polite end; without it the gateway notices as well.
        let _ = self.send(command::DISC, 0, 0);
    }
}
