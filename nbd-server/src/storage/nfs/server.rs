//! An NFS server: how it is found (portmapper, MOUNT), the link to it, and the way from a path to a file. Knows nothing of what the files are.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nfs3_types::mount::{MOUNT_PROGRAM, dirpath, mountres3, mountstat3};
use nfs3_types::nfs3::{
    FSINFO3args, FSINFO3res, GETATTR3args, GETATTR3res, LOOKUP3args, LOOKUP3res, NFS_PROGRAM,
    Nfs3Option, Nfs3Result, READ3args, READ3res, diropargs3, fattr3, filename3, nfs_fh3, nfsstat3,
};
use nfs3_types::portmap::{IPPROTO_TCP, PMAP_PORT, PMAP_PROG, mapping};
use nfs3_types::rpc::opaque_auth;
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack, Void};

use super::super::link::{Answer, Condemned, Link, Reply, Ticket, Wire};
use super::super::place::NfsPlace;
use super::super::remote::Patience;
use super::super::stream::Stream;
use super::rpc::{self, Procedure, Refused};

/// Where NFS servers listen.
const NFS_PORT: u16 = 2049;
/// Most bytes of a lock file that are looked at.
pub(super) const LOCK_BYTES: u32 = 4096;

/// A server, as it is asked on one connection or another.
pub(super) trait Caller {
    /// Asks, and waits.
    fn call<R: Unpack>(&self, number: NFS_PROGRAM, args: &(impl Pack + Sync))
    -> Result<R, Refused>;
}

/// A name in a directory.
pub(super) fn entry<'a>(dir: &nfs_fh3, name: &'a str) -> diropargs3<'a> {
    diropargs3 {
        dir: dir.clone(),
        name: filename3(Opaque::borrowed(name.as_bytes())),
    }
}

/// What a handle is about.
pub(super) fn attributes(caller: &impl Caller, handle: &nfs_fh3) -> Result<fattr3, Refused> {
    let args = GETATTR3args {
        object: handle.clone(),
    };
    match caller.call::<GETATTR3res>(NFS_PROGRAM::NFSPROC3_GETATTR, &args)? {
        Nfs3Result::Ok(found) => Ok(found.obj_attributes),
        Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
    }
}

/// The handle of a name.
pub(super) fn look_up(caller: &impl Caller, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3, Refused> {
    let args = LOOKUP3args {
        what: entry(dir, name),
    };
    match caller.call::<LOOKUP3res>(NFS_PROGRAM::NFSPROC3_LOOKUP, &args)? {
        Nfs3Result::Ok(found) => Ok(found.object),
        Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
    }
}

/// The beginning of a small file.
pub(super) fn content(caller: &impl Caller, file: &nfs_fh3) -> Result<Vec<u8>, Refused> {
    let args = READ3args {
        file: file.clone(),
        offset: 0,
        count: LOCK_BYTES,
    };
    match caller.call::<READ3res<'static>>(NFS_PROGRAM::NFSPROC3_READ, &args)? {
        Nfs3Result::Ok(read) => Ok(read.data.into_owned()),
        Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
    }
}

/// What must stand in a file as long as the server is ours.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    /// Path of the directory.
    pub dir: String,
    pub handle: nfs_fh3,
    /// File system and directory, as the server numbers them.
    pub dir_ids: (u64, u64),
    pub name: String,
    pub content: Vec<u8>,
}

/// How connections to the server are made.
#[derive(Debug)]
pub(super) struct NfsWire {
    place: NfsPlace,
    credential: opaque_auth<'static>,
    /// The part of the path that could be mounted.
    mounted: Mutex<Option<String>>,
    guard: Mutex<Option<Guard>>,
}

/// A connection that nothing else uses.
struct Fresh<'a> {
    stream: Mutex<Stream>,
    credential: &'a opaque_auth<'static>,
}

impl Caller for Fresh<'_> {
    fn call<R: Unpack>(
        &self,
        number: NFS_PROGRAM,
        args: &(impl Pack + Sync),
    ) -> Result<R, Refused> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let procedure = Procedure::nfs(number);
        Ok(rpc::ask(&mut stream, procedure, self.credential, args)?)
    }
}

impl NfsWire {
    fn port_of(&self, program: u32, version: u32) -> io::Result<u16> {
        let fail = |error: io::Error| {
            io::Error::new(
                error.kind(),
                format!(
                    "the portmapper of {} does not say where NFS is: {error}; say it yourself with nfsport= and mountport= in the URL",
                    self.place.host
                ),
            )
        };
        let mut stream = Stream::tcp(&self.place.host, PMAP_PORT, false).map_err(fail)?;
        let procedure = Procedure {
            program: nfs3_types::portmap::PROGRAM,
            version: nfs3_types::portmap::VERSION,
            number: PMAP_PROG::PMAPPROC_GETPORT as u32,
        };
        let args = mapping {
            prog: program,
            vers: version,
            prot: IPPROTO_TCP,
            port: 0,
        };
        let port: u32 =
            rpc::ask(&mut stream, procedure, &opaque_auth::default(), &args).map_err(fail)?;
        match u16::try_from(port) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(fail(io::Error::other("it knows no NFS version 3 over TCP"))),
        }
    }

    /// Mounts the part of `path` that the server exports: the handle, and the rest of the path.
    fn mount(&self, path: &str, is_dir: bool) -> io::Result<(nfs_fh3, String)> {
        let port = match self.place.mount_port {
            Some(port) => port,
            None => self.port_of(nfs3_types::mount::PROGRAM, nfs3_types::mount::VERSION)?,
        };
        let mut stream = Stream::tcp(&self.place.host, port, true)?;
        let known = self
            .mounted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at.max(1)).collect();
        if is_dir {
            ends.push(path.len());
        }
        let candidates = match &known {
            Some(known) => vec![known.as_str()],
            None => ends
                .iter()
                .rev()
                .filter_map(|end| path.get(..*end))
                .collect(),
        };
        let mut refused = None;
        for candidate in candidates {
            let procedure = Procedure {
                program: nfs3_types::mount::PROGRAM,
                version: nfs3_types::mount::VERSION,
                number: MOUNT_PROGRAM::MOUNTPROC3_MNT as u32,
            };
            let args = dirpath(Opaque::borrowed(candidate.as_bytes()));
            let answer: mountres3<'static> =
                rpc::ask(&mut stream, procedure, &self.credential, &args)?;
            match answer {
                mountres3::Ok(mounted) => {
                    *self.mounted.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(candidate.to_owned());
                    let handle = nfs_fh3 {
                        data: Opaque::owned(mounted.fhandle.0.into_owned()),
                    };
                    let rest = path.get(candidate.len()..).unwrap_or_default();
                    return Ok((handle, rest.to_owned()));
                }
                mountres3::Err(status) => {
                    refused.get_or_insert((candidate.to_owned(), status));
                }
            }
        }
        let (candidate, status) = refused.unwrap_or((path.to_owned(), mountstat3::MNT3ERR_NOENT));
        Err(io::Error::other(format!(
            "the server lets us mount no directory on the way to {path} (of {candidate} it says {status}); is it exported to this host?"
        )))
    }

    /// Whether the lock is ours still. A directory that is another one says nothing about it: the server may not have all its disks yet.
    fn check(&self, caller: &impl Caller, guard: &Guard) -> io::Result<()> {
        let dir = self
            .walk(caller, &guard.dir, true)
            .map_err(io::Error::from)?;
        let now = attributes(caller, &dir).map_err(io::Error::from)?;
        if (now.fsid, now.fileid) != guard.dir_ids {
            return Err(io::Error::other(format!(
                "the directory {} is another one now; does the server have all its disks?",
                guard.dir
            )));
        }
        match look_up(caller, &dir, &guard.name).and_then(|file| content(caller, &file)) {
            Ok(content) if content == guard.content => Ok(()),
            Ok(content) => Err(io::Error::other(guard.broken(Some(&content)))),
            Err(refused) if refused.is(nfsstat3::NFS3ERR_NOENT) => {
                Err(io::Error::other(guard.broken(None)))
            }
            Err(refused) => Err(refused.into()),
        }
    }

    /// The handle of a path.
    fn walk(&self, caller: &impl Caller, path: &str, is_dir: bool) -> Result<nfs_fh3, Refused> {
        let (mut handle, rest) = self.mount(path, is_dir)?;
        for name in rest.split('/').filter(|name| !name.is_empty()) {
            handle = look_up(caller, &handle, name)?;
        }
        Ok(handle)
    }
}

impl Wire for NfsWire {
    fn connect(&self) -> io::Result<Stream> {
        let port = match self.place.port {
            Some(port) => port,
            // Those without a portmapper have NFS where everybody has it.
            None => self
                .port_of(nfs3_types::nfs3::PROGRAM, nfs3_types::nfs3::VERSION)
                .unwrap_or(NFS_PORT),
        };
        let stream = Stream::tcp(&self.place.host, port, true)?;
        let fresh = Fresh {
            stream: Mutex::new(stream),
            credential: &self.credential,
        };
        fresh
            .call::<Void>(NFS_PROGRAM::NFSPROC3_NULL, &Void)
            .map_err(io::Error::from)?;
        let guard = self
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(guard) = guard {
            // Before anything that waits is sent: while there was no connection somebody may have been given what was ours.
            self.check(&fresh, &guard)?;
        }
        Ok(fresh
            .stream
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner))
    }

    fn receive(
        &self,
        from: &mut dyn Read,
        _expected: &dyn Fn(u64) -> usize,
    ) -> io::Result<(u64, Reply)> {
        let data = rpc::record(from)?;
        let xid = rpc::xid_of(&data)?;
        Ok((u64::from(xid), Reply { error: 0, data }))
    }
}

/// A server, with a link to it.
#[derive(Debug)]
pub(super) struct Server {
    link: Link,
    wire: Arc<NfsWire>,
    /// Most bytes of one read and one write.
    limits: (usize, usize),
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    /// When the server can't be reached, or exports nothing on the way to the place.
    pub fn open(place: &NfsPlace, is_dir: bool) -> io::Result<Arc<Self>> {
        let wire = Arc::new(NfsWire {
            place: place.clone(),
            credential: rpc::credential(place.uid, place.gid),
            mounted: Mutex::default(),
            guard: Mutex::default(),
        });
        let link = Link::open(place.to_string(), Arc::clone(&wire) as _, place.patience)?;
        let mut server = Self {
            link,
            wire,
            limits: (0, 0),
        };
        let (root, _) = server.wire.mount(&place.path, is_dir)?;
        let args = FSINFO3args { fsroot: root };
        let info = match server.call::<FSINFO3res>(NFS_PROGRAM::NFSPROC3_FSINFO, &args) {
            Ok(Nfs3Result::Ok(info)) => info,
            Ok(Nfs3Result::Err((status, _))) => return Err(Refused::Status(status).into()),
            Err(refused) => return Err(refused.into()),
        };
        // What every server takes, should one say nothing.
        let bytes = |most: u32| usize::try_from(most).unwrap_or(usize::MAX).max(8 << 10);
        server.limits = (bytes(info.rtmax), bytes(info.wtmax));
        Ok(Arc::new(server))
    }

    /// The link to it.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Most bytes of one read and one write.
    pub fn limits(&self) -> (usize, usize) {
        self.limits
    }

    /// The handle of a path.
    pub fn walk(&self, path: &str, is_dir: bool) -> Result<nfs_fh3, Refused> {
        self.wire.walk(self, path, is_dir)
    }

    /// Where a path begins that is to be made: what can be mounted of it, and the names that follow.
    pub fn start_of(&self, path: &str) -> io::Result<(nfs_fh3, Vec<String>)> {
        let (handle, rest) = self.wire.mount(path, true)?;
        let names = rest.split('/').filter(|name| !name.is_empty());
        Ok((handle, names.map(str::to_owned).collect()))
    }

    /// From now on every connection is checked before it is used.
    pub fn guard(&self, guard: Option<Guard>) {
        *self
            .wire
            .guard
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = guard;
    }

    /// A message that calls `number`.
    pub fn message(
        &self,
        id: u64,
        number: NFS_PROGRAM,
        args: &impl Pack,
        body: Bytes,
    ) -> super::super::link::Message {
        // Ids of a link have 32 bits.
        let xid = u32::try_from(id).unwrap_or_default();
        rpc::call(
            xid,
            Procedure::nfs(number),
            &self.wire.credential,
            args,
            body,
        )
    }

    /// Takes a call down and sends it.
    pub fn begin(&self, number: NFS_PROGRAM, args: &impl Pack) -> Ticket {
        let ticket = self
            .link
            .register(|id| self.message(id, number, args, Bytes::new()));
        self.link.send(&ticket);
        ticket
    }

    /// Asks, and waits; also says whether it was asked more than once.
    pub fn call_counted<R: Unpack>(
        &self,
        number: NFS_PROGRAM,
        args: &impl Pack,
    ) -> Result<(R, bool), Refused> {
        let Answer {
            reply, repeated, ..
        } = self.begin(number, args).wait()?;
        Ok((rpc::result(&reply.data)?, repeated))
    }

    /// Does something, and again as long as the server can't.
    pub fn persist<T>(
        &self,
        mut what: impl FnMut() -> Result<T, Refused>,
        mut renew: impl FnMut() -> Result<(), Refused>,
    ) -> Result<T, Refused> {
        let mut patience = Patience::new(&self.link);
        loop {
            match what() {
                Err(refused) if refused.passes() => {
                    patience.wait(refused.into())?;
                    // What is wrong with it shows at the next attempt.
                    let _ = renew();
                }
                end => {
                    patience.over();
                    return end;
                }
            }
        }
    }
}

impl Caller for Server {
    fn call<R: Unpack>(
        &self,
        number: NFS_PROGRAM,
        args: &(impl Pack + Sync),
    ) -> Result<R, Refused> {
        self.call_counted(number, args).map(|(result, _)| result)
    }
}

impl Guard {
    /// It does not stand there any more.
    pub fn broken(&self, found: Option<&[u8]>) -> Condemned {
        let by = found.map_or_else(String::new, |found| {
            let text = String::from_utf8_lossy(found);
            format!(" by {}", super::lock::owner_in(&text))
        });
        Condemned(format!(
            "the lock {}/{} was broken{by}; nothing is written any more, as two writers would destroy what is there",
            self.dir, self.name
        ))
    }
}

/// The handle in an answer that may have none.
pub(super) fn handle_in(found: Nfs3Option<nfs_fh3>) -> Option<nfs_fh3> {
    match found {
        Nfs3Option::Some(handle) => Some(handle),
        Nfs3Option::None => None,
    }
}
