//! One file on an NFS server: reads, unstable writes and commits, with the write verifier and the connection as the life of the server. Found again by its path
//! when its handle is stale; another file in its place is not taken for it.

use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use epoch_log::storage::StorageFile;
use nfs3_types::nfs3::{
    ACCESS3_MODIFY, ACCESS3_READ, ACCESS3args, ACCESS3res, COMMIT3args, COMMIT3res, NFS_PROGRAM,
    Nfs3Option, Nfs3Result, READ3args, READ3res, SETATTR3args, SETATTR3res, WRITE3args, WRITE3res,
    fattr3, ftype3, nfs_fh3, sattr3, stable_how, writeverf3,
};
use nfs3_types::xdr_codec::Opaque;

use super::super::image::join;
use super::super::link::{Answer, Link, Message};
use super::super::remote::{End, Life, Limits, Op, Outcome, Remote};
use super::super::volume::Volume;
use super::lock::NfsLock;
use super::rpc::{self, Refused};
use super::server::{Caller, Server, attributes};

/// Zeros for space that is to be taken.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A file that was found.
#[derive(Debug)]
pub(super) struct NfsFile {
    server: Arc<Server>,
    /// It may be given another name.
    path: Arc<Mutex<String>>,
    handle: RwLock<nfs_fh3>,
    first: fattr3,
    /// Held as long as the file is open.
    _lock: Option<NfsLock>,
}

impl NfsFile {
    /// Finds the file at `path`.
    ///
    /// # Errors
    /// When it is not there, is no file, or the server says no.
    pub fn find(server: &Arc<Server>, path: &str) -> io::Result<Self> {
        let handle = server.walk(path, false).map_err(io::Error::from)?;
        Self::at(server, path, handle)
    }

    /// The file that `handle` is, at `path`.
    pub fn at(server: &Arc<Server>, path: &str, handle: nfs_fh3) -> io::Result<Self> {
        let first = attributes(server.as_ref(), &handle).map_err(io::Error::from)?;
        if first.type_ != ftype3::NF3REG {
            return Err(io::Error::other(format!("{path} is no regular file")));
        }
        Ok(Self {
            server: Arc::clone(server),
            path: Arc::new(Mutex::new(path.to_owned())),
            handle: RwLock::new(handle),
            first,
            _lock: None,
        })
    }

    /// Whether the server would let us do what will be asked of it. Afterwards a refusal is waited out, as it may pass.
    ///
    /// # Errors
    /// It would not.
    pub fn check_access(&self, read_only: bool) -> io::Result<()> {
        let access = match read_only {
            true => ACCESS3_READ,
            false => ACCESS3_READ | ACCESS3_MODIFY,
        };
        let args = ACCESS3args {
            object: self.handle(),
            access,
        };
        let answer = self
            .server
            .call::<ACCESS3res>(NFS_PROGRAM::NFSPROC3_ACCESS, &args);
        match answer.map_err(io::Error::from)? {
            Nfs3Result::Ok(may) if may.access & access == access => Ok(()),
            Nfs3Result::Ok(_) => Err(io::Error::from_raw_os_error(libc::EACCES)),
            Nfs3Result::Err((status, _)) => Err(Refused::Status(status).into()),
        }
    }

    /// The same, which holds `lock`.
    pub fn with_lock(mut self, lock: Option<NfsLock>) -> Self {
        self._lock = lock;
        self
    }

    /// In bytes, when it was found.
    pub fn first_size(&self) -> u64 {
        self.first.size
    }

    /// File system and file, as the server numbers them.
    pub fn ids(&self) -> (u64, u64) {
        (self.first.fsid, self.first.fileid)
    }

    /// Where its path is noted, for whoever gives it another name.
    pub fn path(&self) -> &Arc<Mutex<String>> {
        &self.path
    }

    fn handle(&self) -> nfs_fh3 {
        self.handle
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn find_again(&self) -> Result<(), Refused> {
        let path = self
            .path
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let handle = self.server.walk(&path, false)?;
        let now = attributes(self.server.as_ref(), &handle)?;
        if (now.fsid, now.fileid) != self.ids() {
            return Err(Refused::Io(io::Error::other(format!(
                "{path} is another file now; put the one back that was there, or start the gateway anew"
            ))));
        }
        *self.handle.write().unwrap_or_else(PoisonError::into_inner) = handle;
        Ok(())
    }

    fn size_now(&self) -> io::Result<u64> {
        let found = self.server.persist(
            || attributes(self.server.as_ref(), &self.handle()),
            || self.find_again(),
        );
        Ok(found?.size)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let set = || {
            let args = SETATTR3args {
                object: self.handle(),
                new_attributes: sattr3 {
                    size: Nfs3Option::Some(size),
                    ..sattr3::default()
                },
                guard: Nfs3Option::None,
            };
            match self
                .server
                .call::<SETATTR3res>(NFS_PROGRAM::NFSPROC3_SETATTR, &args)?
            {
                Nfs3Result::Ok(_) => Ok(()),
                Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
            }
        };
        Ok(self.server.persist(set, || self.find_again())?)
    }
}

fn life(connection: u64, verifier: writeverf3) -> Option<Life> {
    Some(Life {
        connection,
        verifier: u64::from_be_bytes(verifier.0),
    })
}

fn end(outcome: Result<Outcome, Refused>) -> End {
    match outcome {
        Ok(outcome) => End::Done(outcome),
        Err(refused) if refused.passes() => End::Again(refused.into()),
        Err(refused) => End::Failed(refused.into()),
    }
}

fn count(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

impl Remote for NfsFile {
    fn link(&self) -> &Link {
        self.server.link()
    }

    fn message(&self, id: u64, op: &Op) -> Message {
        let file = self.handle();
        // Requests are cut to what the server takes, which is less than 4 GiB.
        let short = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        match op {
            Op::Read { offset, len } => {
                let args = READ3args {
                    file,
                    offset: *offset,
                    count: short(*len),
                };
                self.server
                    .message(id, NFS_PROGRAM::NFSPROC3_READ, &args, Bytes::new())
            }
            Op::Write { offset, data } => {
                let args = WRITE3args {
                    file,
                    offset: *offset,
                    count: short(data.len()),
                    stable: stable_how::UNSTABLE,
                    // It follows the arguments.
                    data: Opaque::borrowed(&[]),
                };
                self.server
                    .message(id, NFS_PROGRAM::NFSPROC3_WRITE, &args, data.clone())
            }
            // Zeros and trims are not asked for, see `limits`.
            Op::Flush | Op::Zero { .. } | Op::Trim { .. } => {
                let args = COMMIT3args {
                    file,
                    offset: 0,
                    count: 0,
                };
                self.server
                    .message(id, NFS_PROGRAM::NFSPROC3_COMMIT, &args, Bytes::new())
            }
        }
    }

    fn end(&self, op: &Op, answer: &mut Answer) -> End {
        let data = &answer.reply.data;
        let outcome = match op {
            Op::Read { len, .. } => match rpc::result::<READ3res<'static>>(data) {
                Ok(Nfs3Result::Ok(read)) => {
                    let mut data = read.data.into_owned();
                    data.truncate(*len);
                    Ok(Outcome {
                        data,
                        ..Outcome::default()
                    })
                }
                Ok(Nfs3Result::Err((status, _))) => Err(Refused::Status(status)),
                Err(error) => Err(error.into()),
            },
            Op::Write { data: sent, .. } => match rpc::result::<WRITE3res>(data) {
                Ok(Nfs3Result::Ok(written)) => Ok(Outcome {
                    life: life(answer.connection, written.verf),
                    durable: written.committed == stable_how::FILE_SYNC,
                    count: count(written.count).min(sent.len()),
                    data: Vec::new(),
                }),
                Ok(Nfs3Result::Err((status, _))) => Err(Refused::Status(status)),
                Err(error) => Err(error.into()),
            },
            Op::Flush | Op::Zero { .. } | Op::Trim { .. } => {
                match rpc::result::<COMMIT3res>(data) {
                    Ok(Nfs3Result::Ok(flushed)) => Ok(Outcome {
                        life: life(answer.connection, flushed.verf),
                        ..Outcome::default()
                    }),
                    Ok(Nfs3Result::Err((status, _))) => Err(Refused::Status(status)),
                    Err(error) => Err(error.into()),
                }
            }
        };
        end(outcome)
    }

    fn renew(&self) -> io::Result<()> {
        Ok(self.find_again()?)
    }

    fn limits(&self) -> Limits {
        let (read, write) = self.server.limits();
        Limits {
            read,
            write,
            // The protocol has neither.
            zero: false,
            trim: false,
        }
    }
}

/// A file of a log.
#[derive(Debug)]
pub(super) struct LogFile {
    volume: Volume<NfsFile>,
}

impl LogFile {
    /// The file of a log that `file` is.
    pub fn new(file: NfsFile) -> Self {
        Self {
            volume: Volume::new(file),
        }
    }
}

impl StorageFile for LogFile {
    fn size(&self) -> io::Result<u64> {
        // A server that has restarted may not know yet how long the file is.
        let kept = self.volume.kept_end();
        Ok(self.volume.remote().size_now()?.max(kept))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.volume.read(offset, buffer)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let parts: Vec<&[u8]> = slices.iter().map(|slice| &**slice).collect();
        // Waits: a full disk has to show here, where the log can take back what it has begun.
        self.volume.write(offset, &join(&parts))
    }

    fn sync(&self) -> io::Result<()> {
        self.volume.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.volume.cut(len);
        self.volume.remote().set_size(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut at = self.size()?;
        while at < len {
            let part = usize::try_from(len - at).unwrap_or(usize::MAX);
            let zeros = ZEROS.get(..part.min(ZEROS.len())).unwrap_or(&ZEROS);
            self.volume.write(at, &Bytes::from_static(zeros))?;
            at += zeros.len() as u64;
        }
        self.volume.sync()
    }
}
