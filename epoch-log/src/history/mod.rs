//! History: what the disks held at earlier epochs. An undo log beside the epoch log.
//!
//! ```text
//!   committed epoch N ──▶ save what the images hold where N will change them ──▶ durable ──▶ apply N to the images
//!
//!   read at epoch E:   steps from E on, oldest first  ──▶  the first that saved a byte has what it was at E
//!                      none did                       ──▶  it is in the image: it never changed since
//! ```
//!
//! So the images are always the newest state, plain raw files that need no history to be read. Reading and writing at the head costs
//! the same however long the history is; the past is freed from its old end, file by file; and losing the history loses no disk.
//!
//! A *boundary* is a moment between two saves at which the images held one epoch exactly. What was saved between two boundaries is a *step*.
//! Steps lie one behind another in *runs*, files of bounded size. Merging steps keeps of each byte what was saved first.
//!
//! Old runs can go to an object store: what finds something stays here, the payload goes there.
//!
//! Where to read on: `format` for the bytes, `capture` for how something is saved, `view` for reading, `maintain` for what goes when, `cold`
//! for what lies elsewhere.

mod batch;
mod capture;
mod cold;
mod covered;
mod error;
mod first;
mod format;
mod freeze;
mod live;
mod maintain;
mod merge;
mod open;
mod payload;
mod pins;
mod retention;
mod roll;
mod run;
mod seal;
mod sources;
mod undone;
mod verify;
mod view;

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};

use crate::disk::LogDir;
use crate::format::LogId;
use crate::storage::{Storage, StorageLock};
use crate::{Epoch, EpochLog};
use capture::Writer;
use cold::{Cold, Remains};
use live::{Live, Point};

pub use capture::Capture;
pub use cold::{ColdStore, Cooled, Cooling};
pub use error::HistoryError;
pub use format::Boundary;
pub use freeze::Frozen;
pub use live::Kept;
pub use maintain::Maintained;
pub use open::Opened;
pub use pins::{MAX_PINS, Pin};
pub use retention::{Retention, Tier};
pub use verify::{HistoryVerdict, verify, verify_on};
pub use view::{Changes, Layout, View};

/// Where the log stands that a history belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// What tells the log from all others.
    pub log_id: [u8; 16],
    /// The images hold this epoch durably.
    pub applied: Epoch,
    /// The newest committed epoch.
    pub committed: Epoch,
}

impl From<&EpochLog> for Anchor {
    fn from(log: &EpochLog) -> Self {
        let state = log.state();
        Self {
            log_id: log.id(),
            applied: state.applied,
            committed: state.committed,
        }
    }
}

/// How a history is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Length at which a run is closed, in bytes.
    pub run_bytes: u64,
    /// Entries, or steps, at which it is. They are in memory until then.
    pub run_entries: usize,
    /// Length of the objects that a run becomes in a cold store, in bytes: one of them is in memory while it is put.
    pub object_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            run_bytes: 64 << 20,
            run_entries: 128 << 10,
            object_bytes: 16 << 20,
        }
    }
}

/// How much history there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryStatus {
    /// The oldest point.
    pub oldest: Epoch,
    /// When it was cut, in milliseconds since 1970.
    pub oldest_time_ms: u64,
    /// How many points there are, about: those that only divide the work are counted, too.
    pub points: u64,
    /// Length of all files on the disk of the history, in bytes.
    pub bytes: u64,
    /// Runs, cold ones included.
    pub runs: u64,
    /// What cold runs take in the cold store, in bytes.
    #[serde(default)]
    pub cold_bytes: u64,
    /// Cold runs.
    #[serde(default)]
    pub cold_runs: u64,
    /// Pins, oldest first.
    pub pins: Vec<Pin>,
    /// Nothing goes for its age or size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen: Option<Frozen>,
}

/// The history of one group. All methods block on the disk; they may be called from several threads at once.
#[derive(Debug)]
pub struct History {
    storage: Arc<dyn Storage>,
    dir: LogDir,
    log_id: LogId,
    options: Options,
    /// Taken before `live`, held while something is saved.
    writer: Mutex<Writer>,
    live: RwLock<Live>,
    /// Boundaries that are looked at, and by how many. Taken after `live`.
    held: Mutex<BTreeMap<u64, usize>>,
    /// Taken after `live`.
    pins: Mutex<Vec<Pin>>,
    /// Taken after `maintenance`.
    frozen: Mutex<Option<Frozen>>,
    /// Held by the one that trims or merges; taken before all others but `cooling`.
    maintenance: Mutex<()>,
    /// Where the payload of cold runs is.
    cold: Arc<Cold>,
    /// Held by the one that moves runs to the cold store, also while it waits for that; taken before all others.
    cooling: Mutex<()>,
    /// Taken after all others.
    remains: Mutex<Remains>,
    _lock: Box<dyn StorageLock>,
}

impl History {
    /// Begins to save something. Waits until an earlier capture has ended.
    ///
    /// # Errors
    /// [`HistoryError::Full`], [`HistoryError::Io`]: a run that was being closed can't be yet.
    pub fn capture(&self) -> Result<Capture<'_>, HistoryError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.closing {
            self.roll(&mut writer)?;
        }
        Ok(Capture::begin(self, writer))
    }

    /// The images now are `epoch`, durably.
    pub fn applied(&self, epoch: Epoch) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.seal(&mut writer);
        let mut live = self.change();
        live.applied = live.applied.max(epoch);
    }

    /// The newest boundary.
    pub fn newest(&self) -> Boundary {
        self.live().active.last()
    }

    /// Visits all points from `since` on, oldest first.
    ///
    /// # Errors
    /// [`HistoryError::Damaged`], [`HistoryError::Io`].
    pub fn visit_points(
        &self,
        since: Epoch,
        mut visit: impl FnMut(Kept),
    ) -> Result<(), HistoryError> {
        let mut next = {
            let live = self.live();
            live.run_of(since)
        };
        loop {
            let (points, last) = {
                let live = self.live();
                (live.points(next)?, next >= live.runs.len())
            };
            for point in points.iter().filter(|point| point.until >= since) {
                visit(point.kept());
            }
            if last {
                return Ok(());
            }
            next += 1;
        }
    }

    /// The disks as they were at `epoch`.
    ///
    /// # Errors
    /// [`HistoryError::NotKept`], [`HistoryError::Damaged`], [`HistoryError::Io`].
    pub fn view(self: &Arc<Self>, epoch: Epoch) -> Result<View, HistoryError> {
        self.view_of(|live| live.resolve(epoch), None)
    }

    /// The disks as they were at that time, in milliseconds since 1970.
    ///
    /// # Errors
    /// As [`History::view`].
    pub fn view_at(self: &Arc<Self>, time_ms: u64) -> Result<View, HistoryError> {
        self.view_of(|live| live.resolve_time(time_ms), None)
    }

    /// The disks as they were at a pin.
    ///
    /// # Errors
    /// [`HistoryError::NoPin`]; as [`History::view`].
    pub fn view_pin(self: &Arc<Self>, name: &str) -> Result<View, HistoryError> {
        let pin = self.pin_named(name)?;
        self.view(pin.point.epoch)
    }

    /// What changed from `from` to `to`, the later one.
    ///
    /// # Errors
    /// As [`History::view`].
    pub fn changes(self: &Arc<Self>, from: Epoch, to: Epoch) -> Result<Changes, HistoryError> {
        let to = self.live().resolve(to)?;
        self.view_of(|live| live.resolve(from), Some(to))
            .map(Changes::new)
    }

    fn view_of(
        self: &Arc<Self>,
        resolve: impl FnOnce(&Live) -> Result<Point, HistoryError>,
        to: Option<Point>,
    ) -> Result<View, HistoryError> {
        let live = self.live();
        let from = resolve(&live)?;
        // Under the lock: nobody may merge the point away before it is held.
        self.hold(from.boundary.seq);
        drop(live);
        let view = View::new(Arc::clone(self), from, to);
        self.release(from.boundary.seq);
        view
    }

    /// Gives the point of `epoch` a name. It is never trimmed. A point that has that name already keeps it.
    ///
    /// # Errors
    /// [`HistoryError::NotKept`], [`HistoryError::PinExists`], [`HistoryError::BadPin`], [`HistoryError::Io`].
    pub fn pin(&self, name: &str, epoch: Epoch) -> Result<Pin, HistoryError> {
        pins::check_name(name)?;
        let live = self.live();
        let point = live.resolve(epoch)?;
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pin) = pins.iter().find(|pin| pin.name == name) {
            if pin.seq == point.boundary.seq {
                return Ok(pin.clone());
            }
            return Err(HistoryError::PinExists {
                name: name.to_owned(),
                epoch: pin.point.epoch,
            });
        }
        let pin = Pin {
            name: name.to_owned(),
            point: point.kept(),
            seq: point.boundary.seq,
        };
        let mut all = pins.clone();
        all.push(pin.clone());
        all.sort_by_key(|pin| pin.seq);
        if all.len() > MAX_PINS {
            return Err(HistoryError::TooManyPins { most: MAX_PINS });
        }
        pins::store(&self.dir, &all)?;
        *pins = all;
        Ok(pin)
    }

    /// Takes a name away. What it kept is trimmed as all else.
    ///
    /// # Errors
    /// [`HistoryError::NoPin`], [`HistoryError::Io`].
    pub fn unpin(&self, name: &str) -> Result<Pin, HistoryError> {
        let pin = self.pin_named(name)?;
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = pins.clone();
        all.retain(|pin| pin.name != name);
        pins::store(&self.dir, &all)?;
        *pins = all;
        Ok(pin)
    }

    /// All pins, oldest first.
    pub fn pins(&self) -> Vec<Pin> {
        self.pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The pin of that name.
    ///
    /// # Errors
    /// [`HistoryError::NoPin`].
    pub fn pin_named(&self, name: &str) -> Result<Pin, HistoryError> {
        let pins = self.pins();
        pins.iter()
            .find(|pin| pin.name == name)
            .cloned()
            .ok_or_else(|| {
                let names = pins.into_iter().map(|pin| pin.name).collect();
                let name = name.to_owned();
                HistoryError::NoPin { name, names }
            })
    }

    /// How much there is.
    pub fn status(&self) -> HistoryStatus {
        let bytes = self.active_bytes();
        let live = self.live();
        let oldest = live.oldest();
        let steps: u64 = live.runs.iter().map(|run| run.steps_count()).sum();
        HistoryStatus {
            oldest: oldest.epoch,
            oldest_time_ms: oldest.time_ms,
            points: steps + live.active.steps.len() as u64 + 1,
            bytes: live.local_bytes() + bytes,
            runs: live.runs.len() as u64 + 1,
            cold_bytes: live.runs.iter().map(|run| run.cold_bytes()).sum(),
            cold_runs: live.runs.iter().filter(|run| run.is_cold()).count() as u64,
            pins: self.pins(),
            frozen: self.frozen(),
        }
    }

    /// Id of the log that it belongs to.
    pub fn id(&self) -> [u8; 16] {
        self.log_id
    }

    /// Directory of the history.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn active_bytes(&self) -> u64 {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.end
    }

    fn free_space(&self) -> Option<u64> {
        self.storage.free_space().ok()
    }

    fn hold(&self, seq: u64) {
        *self
            .held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(seq)
            .or_default() += 1;
    }

    fn release(&self, seq: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&seq) {
            *count -= 1;
            if *count == 0 {
                held.remove(&seq);
            }
        }
    }

    /// Boundaries that must stay.
    fn protected(&self) -> BTreeSet<u64> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        held.keys()
            .copied()
            .chain(pins.iter().map(|pin| pin.seq))
            .collect()
    }

    fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn options(&self) -> Options {
        self.options
    }

    fn dir(&self) -> &LogDir {
        &self.dir
    }

    fn log_id(&self) -> LogId {
        self.log_id
    }
}
