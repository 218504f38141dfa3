//! Cold history: closed runs whose data lies in an object store, and of which only what finds it is here.
//!
//! ```text
//!   NNN.run ──▶ NNN.cold.new ──▶ objects put ──▶ each there, its length and ends ──▶ NNN.cold, ──▶ run of the ──▶ NNN.run
//!               durable: names      one by one   read back                           durable      stub in use     removed
//!               the objects
//!
//!   trimmed:    NNN.cold ──▶ NNN.gone, durable ──▶ objects removed ──▶ NNN.gone removed
//!
//!   read:       tables ──▶ stub          payload ──▶ cache ──▶ range of an object, 1 MiB at least
//! ```
//!
//! A *stub* holds the header, the tables and the trailer of its run as they were, so all that asks what changed, and when, asks the stub. Bytes of
//! the run's payload are read from the objects and verified by the entries' checksums, as those of a run on disk are.
//!
//! Whatever the crash, one of the three files names every object that was begun to be put, and nothing is removed from the store but what
//! such a file named: nobody lists the store, and whoever else uses it is safe. The name of an object has the log's id, the run and a
//! random number that is never used for another one. An upload that was cut short goes on with the same names.
//!
//! The store is slow, away or wrong at any time: nothing here is held by a lock that saving or trimming takes while it is asked.
//!
//! `stub` has the bytes and the names, `tier` decides what moves and moves it, `cache` bounds what is read twice. None of them knows what a
//! store is.

mod cache;
mod stub;
mod tier;

use std::fmt::Debug;
use std::io;
use std::sync::{Arc, OnceLock};

use super::HistoryError;
use crate::format::LogId;
use cache::Cache;

pub use stub::{Objects, State, Stub, file_name, len, number_of, place};
pub use tier::{Cooled, Cooling, Remains, let_go};

/// A store of objects: whole ones are put, ranges of them are read. All calls block, give up after a while, and may be made from several threads.
pub trait ColdStore: Debug + Send + Sync {
    /// Where it is, for people.
    fn place(&self) -> String;

    /// Puts an object, in place of one that may be there. Durable on return.
    ///
    /// # Errors
    /// What the store says; the object is there or not.
    fn put(&self, name: &str, content: Vec<u8>) -> io::Result<()>;

    /// Length of an object in bytes; none: there is no such object.
    ///
    /// # Errors
    /// What the store says.
    fn size(&self, name: &str) -> io::Result<Option<u64>>;

    /// Fills `buffer` with what an object holds from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] if there is no such object, [`io::ErrorKind::UnexpectedEof`] if it ends before; what the store says.
    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Removes an object. That there is none is no error.
    ///
    /// # Errors
    /// What the store says.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// The way from the runs of one history to its store.
#[derive(Debug)]
pub struct Cold {
    log_id: LogId,
    store: OnceLock<Arc<dyn ColdStore>>,
    cache: Cache,
}

impl Cold {
    /// Without a store.
    pub fn new(log_id: LogId) -> Self {
        Self {
            log_id,
            store: OnceLock::new(),
            cache: Cache::default(),
        }
    }

    /// Uses `store` from now on; one that was named before stays.
    pub fn connect(&self, store: Arc<dyn ColdStore>) {
        let _ = self.store.set(store);
    }

    /// The store, if one is named.
    pub fn store(&self) -> Option<&Arc<dyn ColdStore>> {
        self.store.get()
    }

    /// Fills `buffer` with what a run holds from `offset` on, which ends before its `len`.
    pub fn read(
        &self,
        objects: &Objects,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), HistoryError> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            // Not beyond one object: an error is of that one.
            let (part, within) = objects.part_at(at);
            let left = usize::try_from(objects.part_len(part).saturating_sub(within));
            let (now, later) = rest.split_at_mut(left.unwrap_or(0).clamp(1, rest.len()));
            let fetch = |from: u64, part: &mut [u8]| self.fetch(objects, from, part);
            self.cache
                .read(objects, at, now, fetch)
                .map_err(|source| self.failed("read", objects.name(self.log_id, part), source))?;
            at = at.saturating_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// What was read of a range is read anew when it is asked for again.
    pub fn forget(&self, objects: &Objects, offset: u64, len: u64) {
        self.cache.forget(objects, offset, len);
    }

    /// Fills `buffer` from the object that has byte `offset` of a run.
    fn fetch(&self, objects: &Objects, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let store = self.store.get().ok_or_else(no_store)?;
        let (part, within) = objects.part_at(offset);
        store.read(&objects.name(self.log_id, part), within, buffer)
    }

    /// Makes sure that one object of a run is there, and as long as it has to be.
    pub fn check(&self, objects: &Objects, part: u64) -> Result<(), HistoryError> {
        let name = objects.name(self.log_id, part);
        let store = self.store.get().ok_or_else(no_store);
        let found = store.and_then(|store| store.size(&name));
        let why = match found {
            Ok(Some(size)) if size == objects.part_len(part) => return Ok(()),
            Ok(Some(_)) => io::Error::new(io::ErrorKind::InvalidData, "it has another length"),
            Ok(None) => io::ErrorKind::NotFound.into(),
            Err(error) => error,
        };
        Err(self.failed("find", name, why))
    }

    /// An error of the store.
    pub fn failed(&self, action: &'static str, object: String, source: io::Error) -> HistoryError {
        HistoryError::Cold {
            action,
            object,
            place: self
                .store
                .get()
                .map_or_else(String::new, |store| format!(" in {}", store.place())),
            source,
        }
    }

    /// What tells the log from all others.
    pub fn log_id(&self) -> LogId {
        self.log_id
    }
}

fn no_store() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "no cold storage is configured: put [group.history.cold] back",
    )
}
