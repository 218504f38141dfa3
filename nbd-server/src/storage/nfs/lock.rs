//! A lock against a second gateway: a file that says who has it. NFS version 3 has no lock that a client's death lifts without help of the
//! server's other daemons, so this is a sign on a door and no more: whoever breaks it must know that the owner is gone.
//!
//! It is lifted without asking when its owner was a process of this very machine that has ended, or when this machine has restarted. For
//! all others there is the way that the message names. The owner looks every few seconds, and before it uses a new
//! connection, whether the sign is still its own, and writes nothing any more when it is not.

use std::fmt;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use epoch_log::storage::StorageLock;
use nfs3_types::nfs3::{
    CREATE3args, CREATE3res, LOOKUP3args, LOOKUP3res, NFS_PROGRAM, Nfs3Option, Nfs3Result,
    READ3args, READ3res, REMOVE3args, RENAME3args, RENAME3res, SETATTR3args, SETATTR3res,
    WRITE3args, WRITE3res, createhow3, nfs_fh3, nfsstat3, sattr3, stable_how,
};
use nfs3_types::xdr_codec::Opaque;

use super::rpc::{self, Refused};
use super::server::{
    Caller, Guard, LOCK_BYTES, Server, attributes, content, entry, handle_in, look_up,
};

/// How often the owner looks.
const LOOK: Duration = Duration::from_secs(5);
/// Of several who lift the same lock at once the last one has it: so long it takes until that is known.
const SETTLE: Duration = Duration::from_millis(300);
/// A lock that is empty for so long was never finished.
const UNFINISHED: Duration = Duration::from_secs(3);
/// To take the sign down a server is given so long.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a lock could not be taken.
#[derive(Debug)]
pub(super) enum LockError {
    /// A process of this machine has it.
    Here(u32),
    /// Somebody else has it; the message says who and what to do.
    Elsewhere(String),
    Io(io::Error),
}

impl LockError {
    /// As an error of the system.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Here(pid) => io::Error::other(format!(
                "it is in use by another gateway (process {pid}); two writers would destroy it"
            )),
            Self::Elsewhere(message) => io::Error::other(message),
            Self::Io(error) => error,
        }
    }
}

impl From<Refused> for LockError {
    fn from(refused: Refused) -> Self {
        Self::Io(refused.into())
    }
}

/// Who has a lock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Owner {
    /// Unlike that of any other lock that ever was.
    id: String,
    host: String,
    machine: String,
    /// Of the running system.
    boot: String,
    /// Processes are numbered within it.
    namespace: String,
    pid: u32,
    /// When the process began; a number may be given again.
    since: String,
}

impl Owner {
    fn me() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Self {
            id: uuid::Uuid::new_v4().to_string(),
            host: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            machine: read("/etc/machine-id").trim().to_owned(),
            boot: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            namespace: namespace.display().to_string(),
            pid: std::process::id(),
            since: began(std::process::id()).unwrap_or_default(),
        }
    }

    fn read(text: &str) -> Self {
        let mut owner = Self::default();
        for line in text.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.to_owned();
            match key {
                "id" => owner.id = value,
                "host" => owner.host = value,
                "machine" => owner.machine = value,
                "boot" => owner.boot = value,
                "namespace" => owner.namespace = value,
                "pid" => owner.pid = value.parse().unwrap_or_default(),
                "since" => owner.since = value,
                _ => {}
            }
        }
        owner
    }

    /// Whether it is known to be gone, seen from `me`.
    fn is_gone(&self, me: &Self) -> bool {
        if self.boot.is_empty() || self.boot != me.boot {
            // The same machine with another boot has restarted. Nothing is known of other machines.
            let known = !self.machine.is_empty() && !self.boot.is_empty() && !me.boot.is_empty();
            return known && (&self.machine, &self.host) == (&me.machine, &me.host);
        }
        self.namespace == me.namespace && began(self.pid).is_none_or(|since| since != self.since)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} on host {}", self.pid, self.host)
    }
}

/// Who has a lock, for people.
pub(super) fn owner_in(text: &str) -> String {
    Owner::read(text).to_string()
}

/// When a process of this machine began, in the clock ticks of proc(5); none: there is none.
fn began(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// A lock that is held. Dropping it lifts it, if the server answers.
#[derive(Debug)]
pub(super) struct NfsLock {
    server: Arc<Server>,
    guard: Guard,
    /// Dropped to end the watch.
    _watch: Sender<()>,
}

impl StorageLock for NfsLock {}

impl NfsLock {
    /// Takes the lock `name` in the directory `dir`. `break_lock`: the id of an owner that is known to be gone.
    ///
    /// # Errors
    /// [`LockError`]
    pub fn take(
        server: &Arc<Server>,
        dir: &str,
        name: &str,
        break_lock: Option<&str>,
    ) -> Result<Self, LockError> {
        let me = Owner::me();
        let text = format!(
            "Epochgate has this; see docs/storage.md before you remove it.\nid={}\nhost={}\nmachine={}\nboot={}\nnamespace={}\npid={}\nsince={}\n",
            me.id, me.host, me.machine, me.boot, me.namespace, me.pid, me.since
        );
        let handle = server.walk(dir, true)?;
        let mut found = first_or_found(server, &handle, name, &text)?;
        if found.as_ref().is_some_and(Vec::is_empty) {
            std::thread::sleep(UNFINISHED);
            found = Some(read(server, &handle, name)?);
        }
        if let Some(found) = found {
            let owner = Owner::read(&String::from_utf8_lossy(&found));
            let broken = break_lock == Some(&owner.id);
            if !(found.is_empty() || broken || owner.is_gone(&me)) {
                return Err(refusal(dir, name, &owner, &me));
            }
            tracing::info!(%owner, lock = format!("{dir}/{name}"), broken, "lifting the lock of an owner that is gone");
            replace(server, &handle, name, &me.id, &text)?;
            std::thread::sleep(SETTLE);
            let now = read(server, &handle, name)?;
            if now != text.as_bytes() {
                let owner = Owner::read(&String::from_utf8_lossy(&now));
                return Err(refusal(dir, name, &owner, &me));
            }
        }
        let at = attributes(server.as_ref(), &handle)?;
        let guard = Guard {
            dir: dir.to_owned(),
            handle,
            dir_ids: (at.fsid, at.fileid),
            name: name.to_owned(),
            content: text.clone().into_bytes(),
        };
        server.guard(Some(guard.clone()));
        let (watch, over) = channel();
        let (watched, watching) = (Arc::downgrade(server), guard.clone());
        std::thread::Builder::new()
            .name("storage lock".to_owned())
            .spawn(move || {
                while over.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout)
                    && look(&watched, &watching)
                {}
            })
            .map_err(LockError::Io)?;
        Ok(Self {
            server: Arc::clone(server),
            guard,
            _watch: watch,
        })
    }
}

fn refusal(dir: &str, name: &str, owner: &Owner, me: &Owner) -> LockError {
    if (&owner.boot, &owner.namespace) == (&me.boot, &me.namespace) && !owner.boot.is_empty() {
        return LockError::Here(owner.pid);
    }
    LockError::Elsewhere(format!(
        "it is in use by another gateway ({owner}, says {dir}/{name}); two writers would destroy it. If that gateway is certainly gone \
         for good, add break_lock={} to the URL",
        owner.id
    ))
}

/// Makes the lock, or says what stands in the one that is there.
fn first_or_found(
    server: &Server,
    dir: &nfs_fh3,
    name: &str,
    text: &str,
) -> Result<Option<Vec<u8>>, LockError> {
    let args = CREATE3args {
        where_: entry(dir, name),
        how: createhow3::GUARDED(sattr3 {
            mode: Nfs3Option::Some(0o644),
            ..sattr3::default()
        }),
    };
    match server.call::<CREATE3res>(NFS_PROGRAM::NFSPROC3_CREATE, &args)? {
        Nfs3Result::Ok(created) => {
            let file = match handle_in(created.obj) {
                Some(file) => file,
                None => look_up(server, dir, name)?,
            };
            write(server, &file, text)?;
            Ok(None)
        }
        Nfs3Result::Err((nfsstat3::NFS3ERR_EXIST, _)) => Ok(Some(read(server, dir, name)?)),
        Nfs3Result::Err((status, _)) => Err(Refused::Status(status).into()),
    }
}

fn read(server: &Server, dir: &nfs_fh3, name: &str) -> Result<Vec<u8>, Refused> {
    content(server, &look_up(server, dir, name)?)
}

/// Writes a small file, durably.
fn write(server: &Server, file: &nfs_fh3, text: &str) -> Result<(), Refused> {
    let truncate = SETATTR3args {
        object: file.clone(),
        new_attributes: sattr3 {
            size: Nfs3Option::Some(0),
            ..sattr3::default()
        },
        guard: Nfs3Option::None,
    };
    if let Nfs3Result::Err((status, _)) =
        server.call::<SETATTR3res>(NFS_PROGRAM::NFSPROC3_SETATTR, &truncate)?
    {
        return Err(Refused::Status(status));
    }
    let args = WRITE3args {
        file: file.clone(),
        offset: 0,
        count: u32::try_from(text.len()).unwrap_or(LOCK_BYTES),
        stable: stable_how::FILE_SYNC,
        data: Opaque::borrowed(&[]),
    };
    let body = Bytes::copy_from_slice(text.as_bytes());
    let answer = server
        .link()
        .call(|id| server.message(id, NFS_PROGRAM::NFSPROC3_WRITE, &args, body))?;
    match rpc::result::<WRITE3res>(&answer.reply.data)? {
        Nfs3Result::Ok(_) => Ok(()),
        Nfs3Result::Err((status, _)) => Err(Refused::Status(status)),
    }
}

/// Puts a lock of our own in place of another.
fn replace(
    server: &Server,
    dir: &nfs_fh3,
    name: &str,
    id: &str,
    text: &str,
) -> Result<(), LockError> {
    let mine = format!("{name}.{id}");
    first_or_found(server, dir, &mine, text)?;
    let args = RENAME3args {
        from: entry(dir, &mine),
        to: entry(dir, name),
    };
    match server.call::<RENAME3res>(NFS_PROGRAM::NFSPROC3_RENAME, &args)? {
        Nfs3Result::Ok(_) => Ok(()),
        Nfs3Result::Err((status, _)) => Err(Refused::Status(status).into()),
    }
}

/// Looks whether the lock is still ours. False: there is nothing more to look after.
fn look(server: &Weak<Server>, guard: &Guard) -> bool {
    let Some(server) = server.upgrade() else {
        return false;
    };
    let condemned = match quick_look_up(&server, guard) {
        Some(Ok(file)) => match quick_read(&server, &file) {
            Some(now) if now != guard.content => guard.broken(Some(&now)),
            _ => return true,
        },
        Some(Err(nfsstat3::NFS3ERR_NOENT)) => guard.broken(None),
        _ => return true,
    };
    server.link().condemn(condemned);
    false
}

/// The lock file, if the server says soon where it is: nothing here may keep a gateway that wants to end.
fn quick_look_up(server: &Server, guard: &Guard) -> Option<Result<nfs_fh3, nfsstat3>> {
    let args = LOOKUP3args {
        what: entry(&guard.handle, &guard.name),
    };
    let ticket = server.begin(NFS_PROGRAM::NFSPROC3_LOOKUP, &args);
    let answer = ticket.wait_for(FAREWELL)?.ok()?;
    match rpc::result::<LOOKUP3res>(&answer.reply.data).ok()? {
        Nfs3Result::Ok(found) => Some(Ok(found.object)),
        Nfs3Result::Err((status, _)) => Some(Err(status)),
    }
}

fn quick_read(server: &Server, file: &nfs_fh3) -> Option<Vec<u8>> {
    let args = READ3args {
        file: file.clone(),
        offset: 0,
        count: LOCK_BYTES,
    };
    let ticket = server.begin(NFS_PROGRAM::NFSPROC3_READ, &args);
    let answer = ticket.wait_for(FAREWELL)?.ok()?;
    match rpc::result::<READ3res<'static>>(&answer.reply.data).ok()? {
        Nfs3Result::Ok(read) => Some(read.data.into_owned()),
        Nfs3Result::Err(_) => None,
    }
}

impl Drop for NfsLock {
    fn drop(&mut self) {
        self.server.guard(None);
        let Some(Ok(file)) = quick_look_up(&self.server, &self.guard) else {
            tracing::debug!(
                lock = self.guard.name,
                "the lock stays: the server does not answer"
            );
            return;
        };
        if quick_read(&self.server, &file).as_deref() == Some(self.guard.content.as_slice()) {
            let args = REMOVE3args {
                object: entry(&self.guard.handle, &self.guard.name),
            };
            let ticket = self.server.begin(NFS_PROGRAM::NFSPROC3_REMOVE, &args);
            drop(ticket.wait_for(FAREWELL));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_known_to_be_gone_is_gone() {
        let me = Owner::me();
        let of = |change: fn(&mut Owner)| {
            let mut owner = Owner::me();
            change(&mut owner);
            owner
        };
        assert!(!of(|_| {}).is_gone(&me));
        assert!(of(|owner| owner.since = "1".into()).is_gone(&me));
        // A process of another namespace may have any number.
        let elsewhere = of(|owner| {
            owner.since = "1".into();
            owner.namespace = "pid:[1]".into();
        });
        assert!(!elsewhere.is_gone(&me));
        assert!(of(|owner| owner.boot = "another".into()).is_gone(&me) != me.machine.is_empty());
        let other = of(|owner| {
            owner.boot = "another".into();
            owner.host = "other".into();
        });
        assert!(!other.is_gone(&me));
        assert!(!Owner::read("").is_gone(&me));
        assert!(!Owner::read("nonsense").is_gone(&me));
    }
}
