//! A directory on an NFS server as what a log needs. The protocol has names durable before a server answers, so there is nothing to sync.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use epoch_log::LogError;
use epoch_log::storage::{Storage, StorageFile, StorageLock};
use nfs3_types::nfs3::{
    CREATE3args, CREATE3res, MKDIR3args, MKDIR3res, NFS_PROGRAM, Nfs3Option, Nfs3Result,
    READDIR3args, READDIR3res, REMOVE3args, REMOVE3res, RENAME3args, RENAME3res, cookieverf3,
    createhow3, nfs_fh3, nfsstat3, sattr3,
};

use super::super::place::NfsPlace;
use super::file::{LogFile, NfsFile};
use super::lock::{LockError, NfsLock};
use super::rpc::Refused;
use super::server::{Caller, Server, attributes, entry, handle_in, look_up};

/// Name of the lock file.
const LOCK: &str = "LOCK";
/// Bytes of names per reply.
const NAMES: u32 = 32 << 10;
/// Who may read the files of a log.
const MODE: (u32, u32) = (0o755, 0o644);

/// A directory. Found when it is first used.
#[derive(Debug)]
pub(super) struct NfsDir {
    server: Arc<Server>,
    path: String,
    /// For messages.
    url: PathBuf,
    break_lock: Option<String>,
    handle: Mutex<Option<nfs_fh3>>,
    /// Paths of the files that are open.
    open: Mutex<Vec<Weak<Mutex<String>>>>,
}

impl NfsDir {
    /// The directory at `place`, which need not be there yet.
    pub fn new(server: Arc<Server>, place: &NfsPlace) -> Self {
        Self {
            server,
            path: place.path.clone(),
            url: place.to_string().into(),
            break_lock: place.break_lock.clone(),
            handle: Mutex::default(),
            open: Mutex::default(),
        }
    }

    fn path_of(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    fn handle(&self) -> Result<nfs_fh3, Refused> {
        let mut known = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = known.as_ref() {
            return Ok(handle.clone());
        }
        let found = self.server.walk(&self.path, true)?;
        *known = Some(found.clone());
        Ok(found)
    }

    fn find_again(&self) -> Result<(), Refused> {
        let found = self.server.walk(&self.path, true)?;
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        Ok(())
    }

    /// Does something with the handle of the directory, and again as long as the server can't.
    fn persist<T>(&self, mut what: impl FnMut(nfs_fh3) -> Result<T, Refused>) -> io::Result<T> {
        let done = self
            .server
            .persist(|| what(self.handle()?), || self.find_again());
        Ok(done?)
    }

    fn opened(&self, name: &str, handle: nfs_fh3) -> io::Result<Box<dyn StorageFile>> {
        let file = NfsFile::at(&self.server, &self.path_of(name), handle)?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|path| path.strong_count() > 0);
        open.push(Arc::downgrade(file.path()));
        drop(open);
        Ok(Box::new(LogFile::new(file)))
    }

    /// Open files are found by their new name from now on.
    fn note_rename(&self, from: &str, to: &str) {
        let (from, to) = (self.path_of(from), self.path_of(to));
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for path in open.iter().filter_map(Weak::upgrade) {
            let mut path = path.lock().unwrap_or_else(PoisonError::into_inner);
            if *path == from {
                path.clone_from(&to);
            }
        }
    }
}

/// Makes a directory that may be there.
fn make_dir(server: &Server, dir: &nfs_fh3, name: &str) -> Result<nfs_fh3, Refused> {
    match look_up(server, dir, name) {
        Err(refused) if refused.is(nfsstat3::NFS3ERR_NOENT) => {}
        end => return end,
    }
    let args = MKDIR3args {
        where_: entry(dir, name),
        attributes: sattr3 {
            mode: Nfs3Option::Some(MODE.0),
            ..sattr3::default()
        },
    };
    match server.call::<MKDIR3res>(NFS_PROGRAM::NFSPROC3_MKDIR, &args)? {
        Nfs3Result::Err((status, _)) if status != nfsstat3::NFS3ERR_EXIST => {
            Err(Refused::Status(status))
        }
        _ => look_up(server, dir, name),
    }
}

impl Storage for NfsDir {
    fn path(&self) -> &Path {
        &self.url
    }

    fn prepare(&self) -> io::Result<()> {
        let (mut handle, names) = self.server.start_of(&self.path)?;
        for name in names {
            handle = make_dir(&self.server, &handle, &name).map_err(io::Error::from)?;
        }
        *self.handle.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
        Ok(())
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, LogError> {
        let lock = NfsLock::take(&self.server, &self.path, LOCK, self.break_lock.as_deref());
        match lock {
            Ok(lock) => Ok(Box::new(lock)),
            Err(LockError::Here(pid)) => Err(LogError::InUse {
                dir: self.url.clone(),
                pid: Some(pid),
            }),
            Err(other) => Err(LogError::Io {
                action: "lock",
                path: self.url.clone(),
                source: other.into_io(),
            }),
        }
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        let handle = self.persist(|dir| {
            let args = CREATE3args {
                where_: entry(&dir, name),
                how: createhow3::UNCHECKED(sattr3 {
                    mode: Nfs3Option::Some(MODE.1),
                    size: Nfs3Option::Some(0),
                    ..sattr3::default()
                }),
            };
            match self
                .server
                .call::<CREATE3res>(NFS_PROGRAM::NFSPROC3_CREATE, &args)?
            {
                Nfs3Result::Ok(created) => match handle_in(created.obj) {
                    Some(handle) => Ok(handle),
                    None => look_up(self.server.as_ref(), &dir, name),
                },
                Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
            }
        })?;
        self.opened(name, handle)
    }

    fn open(&self, name: &str, _writable: bool) -> io::Result<Box<dyn StorageFile>> {
        let handle = self.persist(|dir| look_up(self.server.as_ref(), &dir, name))?;
        self.opened(name, handle)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.persist(|dir| {
            let args = RENAME3args {
                from: entry(&dir, from),
                to: entry(&dir, to),
            };
            let (answer, repeated) = self
                .server
                .call_counted::<RENAME3res>(NFS_PROGRAM::NFSPROC3_RENAME, &args)?;
            match answer {
                Nfs3Result::Ok(_) => Ok(()),
                // The first time it was done, and its answer was lost.
                Nfs3Result::Err((nfsstat3::NFS3ERR_NOENT, _)) if repeated => {
                    look_up(self.server.as_ref(), &dir, to).map(drop)
                }
                Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
            }
        })?;
        self.note_rename(from, to);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.persist(|dir| {
            let args = REMOVE3args {
                object: entry(&dir, name),
            };
            let (answer, repeated) = self
                .server
                .call_counted::<REMOVE3res>(NFS_PROGRAM::NFSPROC3_REMOVE, &args)?;
            match answer {
                Nfs3Result::Err((nfsstat3::NFS3ERR_NOENT, _)) if repeated => Ok(()),
                Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
                Nfs3Result::Ok(_) => Ok(()),
            }
        })
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.persist(|dir| {
            let mut names = Vec::new();
            let mut args = READDIR3args {
                dir,
                cookie: 0,
                cookieverf: cookieverf3::default(),
                count: NAMES,
            };
            loop {
                let page = match self
                    .server
                    .call::<READDIR3res<'static>>(NFS_PROGRAM::NFSPROC3_READDIR, &args)?
                {
                    Nfs3Result::Ok(page) => page,
                    Nfs3Result::Err((status, _)) => return Err(Refused::Status(status)),
                };
                args.cookieverf = page.cookieverf;
                let is_empty = page.reply.entries.is_empty();
                for found in page.reply.entries.into_inner() {
                    args.cookie = found.cookie;
                    // Names that are not UTF-8 are none of ours.
                    let name = String::from_utf8(found.name.0.into_owned()).ok();
                    names.extend(name.filter(|name| !matches!(name.as_str(), "." | "..")));
                }
                if page.reply.eof || is_empty {
                    return Ok(names);
                }
            }
        })
    }

    fn modified(&self, name: &str) -> io::Result<SystemTime> {
        let found = self.persist(|dir| {
            let file = look_up(self.server.as_ref(), &dir, name)?;
            attributes(self.server.as_ref(), &file)
        })?;
        let since = Duration::new(found.mtime.seconds.into(), found.mtime.nseconds);
        SystemTime::UNIX_EPOCH
            .checked_add(since)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn directory(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(Self {
            server: Arc::clone(&self.server),
            path: self.path_of(name),
            url: self.url.join(name),
            break_lock: self.break_lock.clone(),
            handle: Mutex::default(),
            open: Mutex::default(),
        }))
    }

    fn trouble(&self) -> Option<String> {
        self.server.link().trouble()
    }
}
