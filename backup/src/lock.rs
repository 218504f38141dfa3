//! One at a time changes the backups of a group in a place. In a directory the kernel keeps the lock, and lets it go with the process. In a bucket it
//! is an object that its holder writes anew again and again; one that stays the same has lost its holder.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use nbd_server::storage::objects::{ObjectError, Objects};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{BackupError, Repository, Watch};

/// How often the holder writes it anew.
const BEAT: Duration = Duration::from_secs(4);
/// Whoever has not written for so long is gone. Beats that fail for a while don't lose the lock, see [`Lock::check`].
const GONE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(500);
const MOST_LOCK: u64 = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    token: String,
    host: String,
    boot: String,
    pid: u32,
    beat: u64,
}

/// The lock of a group in a place. Dropping it lets it go.
#[derive(Debug)]
pub(crate) struct Lock {
    held: Held,
}

#[derive(Debug)]
enum Held {
    File {
        _file: File,
    },
    Object {
        shared: Arc<Shared>,
        beats: Option<JoinHandle<()>>,
    },
}

#[derive(Debug)]
struct Shared {
    objects: Objects,
    name: String,
    me: Holder,
    lost: AtomicBool,
    over: Mutex<bool>,
    bell: Condvar,
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// [`BackupError::Locked`] if another one has it.
    pub fn take(
        repository: &Repository,
        group: &str,
        watch: &dyn Watch,
    ) -> Result<Self, BackupError> {
        let name = format!("state/{group}/lock");
        match repository.place().directory() {
            Some(path) => file(path.join(&name)),
            None => object(&repository.objects, name, watch),
        }
    }

    /// Asks once more, before something that can't be taken back.
    ///
    /// # Errors
    /// [`BackupError::Locked`] if it was lost, as when this process slept for long.
    pub fn check(&self) -> Result<(), BackupError> {
        let Held::Object { shared, .. } = &self.held else {
            return Ok(());
        };
        let mine =
            read(&shared.objects, &shared.name)?.is_some_and(|now| now.token == shared.me.token);
        if mine && !shared.lost.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(BackupError::Locked(
            "another process has taken the lock of this place meanwhile; run the command again"
                .to_owned(),
        ))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let Held::Object { shared, beats } = &mut self.held else {
            return;
        };
        *shared.over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        shared.bell.notify_all();
        if let Some(beats) = beats.take() {
            let _ = beats.join();
        }
        if self.check().is_ok()
            && let Held::Object { shared, .. } = &self.held
        {
            // One that stays is taken over later.
            let _ = shared.objects.delete(&shared.name);
        }
    }
}

fn file(path: PathBuf) -> Result<Lock, BackupError> {
    let failed = |source| BackupError::File {
        action: "locked",
        path: path.clone(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock {
            held: Held::File { _file: file },
        }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BackupError::Locked(format!(
            "another process works on these backups (it holds {}); wait for it to end",
            path.display()
        ))),
        Err(error) => Err(failed(error.into())),
    }
}

fn object(objects: &Objects, name: String, watch: &dyn Watch) -> Result<Lock, BackupError> {
    let me = Holder {
        token: uuid::Uuid::new_v4().to_string(),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        boot: boot(),
        pid: std::process::id(),
        beat: 0,
    };
    loop {
        match objects.put_new(&name, bytes(&me)?) {
            Ok(()) => break,
            Err(ObjectError::AlreadyThere { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let Some(other) = read(objects, &name)? else {
            continue;
        };
        wait_for_its_end(objects, &name, &other, watch)?;
        objects.delete(&name)?;
    }
    // Two who find the same dead lock may both remove one; the later remover removes that of the first.
    std::thread::sleep(LOOK);
    let shared = Arc::new(Shared {
        objects: objects.clone(),
        name,
        me,
        lost: AtomicBool::new(false),
        over: Mutex::new(false),
        bell: Condvar::new(),
    });
    let for_beats = Arc::clone(&shared);
    let lock = Lock {
        held: Held::Object {
            beats: Some(std::thread::spawn(move || beat(&for_beats))),
            shared,
        },
    };
    lock.check()?;
    Ok(lock)
}

/// Returns when the holder of a lock is gone.
fn wait_for_its_end(
    objects: &Objects,
    name: &str,
    other: &Holder,
    watch: &dyn Watch,
) -> Result<(), BackupError> {
    if other.boot == boot() && !std::path::Path::new(&format!("/proc/{}", other.pid)).exists() {
        return Ok(());
    }
    watch.say(
        "another process has the lock of these backups; waiting to see whether it still works",
    );
    let mut waited = Duration::ZERO;
    while waited < GONE {
        if watch.stop() {
            return Err(BackupError::Stopped);
        }
        std::thread::sleep(LOOK);
        waited += LOOK;
        match read(objects, name)? {
            None => return Ok(()),
            Some(now) if now == *other => {}
            Some(now) => {
                return Err(BackupError::Locked(format!(
                    "another process works on these backups (process {} on {}); wait for it to end",
                    now.pid, now.host
                )));
            }
        }
    }
    Ok(())
}

/// Writes the lock anew until it is over, or lost.
fn beat(shared: &Shared) {
    let mut holder = shared.me.clone();
    loop {
        let over = shared.over.lock().unwrap_or_else(PoisonError::into_inner);
        let (over, _) = shared
            .bell
            .wait_timeout_while(over, BEAT, |over| !*over)
            .unwrap_or_else(PoisonError::into_inner);
        if *over {
            return;
        }
        drop(over);
        match read(&shared.objects, &shared.name) {
            Ok(Some(now)) if now.token == holder.token => {}
            // The next beat may get through.
            Err(_) => continue,
            Ok(_) => {
                shared.lost.store(true, Ordering::Relaxed);
                return;
            }
        }
        holder.beat += 1;
        if let Ok(bytes) = bytes(&holder) {
            let _ = shared.objects.put(&shared.name, bytes);
        }
    }
}

fn read(objects: &Objects, name: &str) -> Result<Option<Holder>, BackupError> {
    match objects.get(name, MOST_LOCK) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|_| {
            BackupError::damaged(name, "it is no lock; remove it if no backup is under way")
        })?)),
        Err(ObjectError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn bytes(holder: &Holder) -> Result<Bytes, BackupError> {
    let bytes = serde_json::to_vec(holder).map_err(std::io::Error::other)?;
    Ok(bytes.into())
}

/// Tells this run of this machine from all others.
fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // Process ids are those of a namespace.
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", id.trim(), space.display())
}
