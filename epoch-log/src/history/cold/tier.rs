//! What goes to the cold store and when, getting it there, and removing from there what nobody needs any more. Knows no store.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use super::super::format::PAGE_LEN;
use super::super::run::{ClosedRun, RunFile, failed};
use super::super::{History, HistoryError, Retention};
use super::stub::{NAMES_ONLY, Objects, State, Stub, file_name};
use super::{Cold, ColdStore};
use crate::disk::LogDir;

/// Runs whose objects are removed by one call.
const REMOVED_AT_ONCE: usize = 16;

/// What goes to the cold store. The oldest goes first; the run that grows never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooling {
    /// Runs whose newest point is older than this, in milliseconds. One that is due to be thinned waits for that, half as long again at most.
    pub after_ms: u64,
    /// Whatever their age, while all files here take more than so many bytes.
    pub above: u64,
}

/// What a call of [`History::cool`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cooled {
    /// Bytes of the run that is cold now.
    pub moved: u64,
    /// Runs whose objects were removed.
    pub removed: usize,
}

impl Cooled {
    /// There was nothing to do, or it was to stop.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.moved == 0 && self.removed == 0
    }
}

/// Stubs that are no part of the history: by the numbers of their runs.
#[derive(Debug, Default)]
pub struct Remains {
    /// Their objects are being put, or were when that was cut short.
    pub begun: BTreeSet<u64>,
    /// Their objects are to be removed.
    pub gone: BTreeSet<u64>,
}

impl History {
    /// Cold runs are in `store`. Needed to read their payload and for [`History::cool`], and for nothing else.
    pub fn use_cold(&self, store: Arc<dyn ColdStore>) {
        self.cold.connect(store);
    }

    /// Does some of what is due between here and the store: moves the oldest run, removes what was trimmed. To be called from time to time,
    /// and again at once while there was something. Takes as long as the store takes; nobody else waits for it. Stops early when `go_on`
    /// says no, and goes on there the next time, also after a restart.
    ///
    /// # Errors
    /// [`HistoryError::Cold`], [`HistoryError::Io`]: nothing is lost, and it is due again.
    pub fn cool(
        &self,
        now_ms: u64,
        cooling: &Cooling,
        retention: &Retention,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Cooled, HistoryError> {
        let _alone = self.cooling.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(store) = self.cold.store() else {
            return Ok(Cooled::default());
        };
        // What can't be removed does not keep anything from being moved.
        let removed = self.remove_gone(store.as_ref(), go_on);
        let moved = self.move_next(store.as_ref(), now_ms, cooling, retention, go_on)?;
        Ok(Cooled {
            moved,
            removed: removed?,
        })
    }

    fn remove_gone(
        &self,
        store: &dyn ColdStore,
        go_on: &dyn Fn() -> bool,
    ) -> Result<usize, HistoryError> {
        let gone: Vec<u64> = self.remains().gone.iter().copied().collect();
        let mut removed = 0;
        for number in gone.into_iter().take(REMOVED_AT_ONCE) {
            if !go_on() {
                break;
            }
            match Stub::open(self.dir(), number, State::Gone)? {
                Some(stub) => {
                    for part in 0..stub.objects.parts() {
                        let name = stub.objects.name(self.log_id(), part);
                        store
                            .remove(&name)
                            .map_err(|source| self.cold.failed("remove", name, source))?;
                    }
                }
                None => tracing::warn!(
                    stub = file_name(number, State::Gone),
                    "a stub is damaged: what it names stays in cold storage"
                ),
            }
            remove(self.dir(), &file_name(number, State::Gone))?;
            self.remains().gone.remove(&number);
            removed += 1;
        }
        Ok(removed)
    }

    /// Moves the run that is due, if there is one. Returns how long it is.
    fn move_next(
        &self,
        store: &dyn ColdStore,
        now_ms: u64,
        cooling: &Cooling,
        retention: &Retention,
        go_on: &dyn Fn() -> bool,
    ) -> Result<u64, HistoryError> {
        let due = self.next_to_cool(now_ms, cooling, retention);
        self.give_up_others(due.as_deref())?;
        // An earlier stub of it may still name what is to be removed.
        let free = |run: &Arc<ClosedRun>| !self.remains().gone.contains(&run.file.number);
        let Some(run) = due.filter(|run| free(run) && go_on()) else {
            return Ok(0);
        };
        let (dir, number) = (self.dir(), run.file.number);
        let fits = |stub: &Stub| stub.header.salt == run.file.salt && stub.objects.len == run.bytes;
        let mut stub = match there(dir, number, State::Whole)?.filter(fits) {
            // It was given its name, and then something failed.
            Some(stub) => stub,
            None => {
                self.remains().begun.insert(number);
                let stub = match there(dir, number, State::Begun)?.filter(fits) {
                    Some(stub) => {
                        stub.make_durable(dir)?;
                        stub
                    }
                    None => Stub::begin(dir, &run, self.log_id(), self.options().object_bytes)?,
                };
                match put(&self.cold, store, &run, &stub.objects, go_on)? {
                    Put::Whole => {}
                    Put::Stopped => return Ok(0),
                    Put::Changed => {
                        self.let_begun_go(number)?;
                        return Err(run.file.damaged(0, "it reads otherwise each time"));
                    }
                }
                stub
            }
        };
        let _alone = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let same = |other: &Arc<ClosedRun>| Arc::ptr_eq(other, &run);
        let Some(place) = self.live().runs.iter().position(same) else {
            // It was trimmed or merged meanwhile.
            self.let_begun_go(number)?;
            return Ok(0);
        };
        stub.becomes(dir, State::Whole)?;
        self.remains().begun.remove(&number);
        let header = stub.header;
        let file = Arc::new(RunFile::cold(dir, stub, &self.cold));
        let cold = ClosedRun::of(&file, &header)?
            .ok_or_else(|| file.damaged(0, "what was just written is not there"))?;
        {
            let mut live = self.change();
            live.version += 1;
            if let Some(slot) = live.runs.get_mut(place) {
                *slot = Arc::new(cold);
            }
        }
        self.remove_file(&run)?;
        Ok(run.bytes)
    }

    fn next_to_cool(
        &self,
        now_ms: u64,
        cooling: &Cooling,
        retention: &Retention,
    ) -> Option<Arc<ClosedRun>> {
        let active = self.active_bytes();
        let live = self.live();
        let run = live.runs.iter().find(|run| !run.is_cold())?;
        let age = now_ms.saturating_sub(run.to().time_ms);
        let thinned = retention.tier_of(age) <= run.tier;
        let after = cooling.after_ms;
        let old = age > after && (thinned || age > after.saturating_add(after / 2));
        let due =
            old || live.local_bytes() + active > cooling.above || self.is_short_of_space(retention);
        due.then(|| Arc::clone(run))
    }

    /// What was begun for a run that is not there any more, or not the one that is due, is not needed.
    fn give_up_others(&self, due: Option<&ClosedRun>) -> Result<(), HistoryError> {
        let due = due.map(|run| run.file.number);
        let begun: Vec<u64> = self.remains().begun.iter().copied().collect();
        for number in begun {
            if due == Some(number) {
                continue;
            }
            self.let_begun_go(number)?;
        }
        Ok(())
    }

    fn let_begun_go(&self, number: u64) -> Result<(), HistoryError> {
        let gone = let_go(self.dir(), number, State::Begun)?;
        let mut remains = self.remains();
        remains.begun.remove(&number);
        if gone {
            remains.gone.insert(number);
        }
        Ok(())
    }

    /// Takes a run that is no part of the history any more off the disk, and its objects, later, out of the store.
    pub(in super::super) fn discard(&self, run: &ClosedRun) -> Result<(), HistoryError> {
        if !run.is_cold() {
            return self.remove_file(run);
        }
        let number = run.file.number;
        if let_go(self.dir(), number, State::Whole)? {
            self.remains().gone.insert(number);
        }
        Ok(())
    }

    fn remains(&self) -> MutexGuard<'_, Remains> {
        self.remains.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stub of a run, if it is there and whole at its beginning.
fn there(dir: &LogDir, number: u64, state: State) -> Result<Option<Stub>, HistoryError> {
    match Stub::open(dir, number, state) {
        Err(HistoryError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        other => other,
    }
}

/// The stub of run `number` is not needed any more: from now on, durably, it only names what is to be removed. False: it names nothing.
pub fn let_go(dir: &LogDir, number: u64, state: State) -> Result<bool, HistoryError> {
    let Some(mut stub) = there(dir, number, state)? else {
        // It was not written to its end, so nothing was put; or it is damaged.
        tracing::warn!(stub = file_name(number, state), "a stub is not whole");
        remove(dir, &file_name(number, state))?;
        return Ok(false);
    };
    stub.becomes(dir, State::Gone)?;
    let name = file_name(number, State::Gone);
    let cut = dir
        .open_file(&name)
        .and_then(|file| file.truncate(NAMES_ONLY));
    if let Err(error) = cut {
        // It takes more space than it has to.
        tracing::debug!(%error, stub = name, "a stub can't be cut");
    }
    Ok(true)
}

fn remove(dir: &LogDir, name: &str) -> Result<(), HistoryError> {
    match dir.remove(name) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("remove", dir.path().join(name), error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

enum Put {
    Whole,
    Stopped,
    /// The run is not what it was when its stub was written.
    Changed,
}

/// Puts a run, and looks whether it is there.
fn put(
    cold: &Cold,
    store: &dyn ColdStore,
    run: &ClosedRun,
    objects: &Objects,
    go_on: &dyn Fn() -> bool,
) -> Result<Put, HistoryError> {
    let mut sum = Xxh3::new();
    for part in 0..objects.parts() {
        if !go_on() {
            return Ok(Put::Stopped);
        }
        let name = objects.name(cold.log_id(), part);
        let len = objects.part_len(part);
        let mut content = vec![0; usize::try_from(len).unwrap_or(0)];
        run.file.fill_whole(&mut content, part * objects.part_len)?;
        sum.update(&content);
        let end = content
            .split_at(content.len().saturating_sub(PAGE_LEN))
            .1
            .to_vec();
        store
            .put(&name, content)
            .map_err(|source| cold.failed("put", name.clone(), source))?;
        // The store vouches for what it has taken; this is whether it took what was meant, under this name.
        let found = store.size(&name).and_then(|size| {
            let mut held = vec![0; end.len()];
            if size == Some(len) {
                store.read(&name, len - held.len() as u64, &mut held)?;
            }
            Ok(size == Some(len) && held == end)
        });
        match found {
            Ok(true) => {}
            Ok(false) => {
                let what = std::io::Error::other("what was put there is not there");
                return Err(cold.failed("find", name, what));
            }
            Err(source) => return Err(cold.failed("look for", name, source)),
        }
    }
    if sum.digest() == objects.sum {
        Ok(Put::Whole)
    } else {
        Ok(Put::Changed)
    }
}
