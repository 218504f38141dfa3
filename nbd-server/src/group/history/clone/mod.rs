//! Clones: all disks of a group as they were at one point in time, writable. What is written to a clone goes to a directory of its own, the
//! group's disks, log and history never see it; its point is pinned as long as it exists.
//!
//! ```text
//!   log/history-clones/NAME/      one clone, or a link to the directory that was given for it
//!       CLONE                     what it is of: it exists while this does            (identity)
//!       DISK.data, DISK.map       blocks that were written, and which they are        (disk, map, blocks)
//!       DISK.recent               those of them that the map does not have yet
//! ```
//!
//! Here is what there is, and how it is attached; [`life`] makes, opens and removes clones, [`opened`] is one of them.

mod blocks;
mod disk;
mod error;
mod identity;
mod life;
mod map;
mod opened;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use error::CloneError;
pub use opened::PIN_PREFIX;

use crate::control::api::CloneStatus;
use crate::export::{Cutter, Export, ExportInfo};
use crate::group::history::export::PastEntry;
use crate::group::{Group, Refusal};
use identity::Identity;
use opened::OpenClone;

/// How an export of a clone's disk is named behind the `@`.
const PREFIX: &str = "clone=";

/// The name of the clone, if that is what stands behind the `@` of an export.
pub fn named(instance: &str) -> Option<&str> {
    instance.strip_prefix(PREFIX)
}

/// The clones of a group.
#[derive(Debug, Default)]
pub struct Clones {
    all: Mutex<BTreeMap<String, Entry>>,
    /// Held by the one that makes or removes a clone; taken before `all`.
    changing: Mutex<()>,
}

/// One clone, whether it could be opened or not.
#[derive(Debug)]
struct Entry {
    /// Where its files are.
    dir: PathBuf,
    /// What it is of, if that is known.
    identity: Option<Identity>,
    /// It, or why it can't be attached.
    clone: Result<Arc<OpenClone>, String>,
}

impl Clones {
    /// Makes everything durable that was written to them, and closes them: once the last connection has ended, their files are free.
    pub fn close(&self) {
        let all = std::mem::take(&mut *self.all());
        for clone in all.into_values().filter_map(|entry| entry.clone.ok()) {
            clone.settle();
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks something of a clone that is open. While it is asked, the clone is not removed.
    fn ask<T>(
        &self,
        name: &str,
        question: impl FnOnce(&Arc<OpenClone>) -> Option<T>,
    ) -> Result<T, Refusal> {
        let all = self.all();
        let entry = all.get(name).ok_or_else(|| {
            let names = all.keys().cloned().collect();
            let name = name.to_owned();
            Refusal::Past(CloneError::Unknown { name, names }.to_string())
        })?;
        let clone = entry.clone.as_ref().map_err(|error| {
            Refusal::Past(format!("the clone '{name}' can't be attached: {error}"))
        })?;
        question(clone).ok_or_else(|| Refusal::Past("there is no such disk".to_owned()))
    }
}

impl Group {
    /// What there is to know about the clones, by name.
    pub fn clone_statuses(&self) -> Vec<CloneStatus> {
        let all = self.clones.all();
        let statuses = all
            .iter()
            .map(|(name, entry)| self.clone_status(name, entry));
        statuses.collect()
    }

    fn clone_status(&self, name: &str, entry: &Entry) -> CloneStatus {
        let open = entry.clone.as_ref();
        let identity = entry.identity.as_ref();
        CloneStatus {
            name: name.to_owned(),
            epoch: identity.map(|identity| identity.epoch),
            time_ms: identity.map(|identity| identity.time_ms),
            created_ms: identity.map(|identity| identity.created_ms),
            dir: entry.dir.clone(),
            exports: self
                .disk_names()
                .map(|disk| {
                    let export = format!("{}/{disk}@{PREFIX}{name}", self.name());
                    (disk.to_owned(), export)
                })
                .collect(),
            written: open.map_or(0, |clone| clone.written()),
            connections: open.map_or(0, |clone| clone.clients().count() as u64),
            error: open.err().cloned(),
        }
    }

    pub(super) fn describe_clone(&self, number: usize, name: &str) -> Result<ExportInfo, Refusal> {
        self.clones.ask(name, |clone| clone.info(number))
    }

    pub(super) fn attach_clone(
        &self,
        number: usize,
        name: &str,
        cutter: Cutter,
    ) -> Result<Arc<dyn Export>, Refusal> {
        let instance = format!("{PREFIX}{name}");
        let export = self.clones.ask(name, |clone| {
            let entry = PastEntry::new(&self.shared, &instance, cutter.clone());
            clone.attach(number, cutter, entry)
        })?;
        Ok(Arc::new(export))
    }
}
