//! The disk of the storage host: the log's directory with that of its history, and the images, in memory. What was synced is there after a power loss; of the
//! rest any sector and any change of a name may be, in any order. It fails when it is told to. Knows nothing of what the bytes mean.

mod directory;
mod file;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epoch_log::forgetful::{Change, NameChange, Names, SECTOR};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::planted::Planted;

pub use file::SimFile;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
/// The log's directory.
const LOG: &str = "/log";
/// What a state record takes, and where the first of its two sectors ends: how a planted lie tells one from data.
const STATE_RECORD: usize = 4096 + 512;

/// An operation that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Of the log.
    WriteLog,
    /// Of the log.
    SyncLog,
    /// Of the log's directory.
    SyncNames,
    /// Of an image.
    WriteImage,
    /// Of an image.
    SyncImage,
    /// Of an image.
    ReadImage,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::WriteLog,
        Self::SyncLog,
        Self::SyncNames,
        Self::WriteImage,
        Self::SyncImage,
        Self::ReadImage,
    ];
}

#[derive(Debug, Default)]
struct File {
    /// What a process sees.
    seen: Vec<u8>,
    /// What a power loss leaves at least.
    durable: Vec<u8>,
    unsynced: Vec<Change>,
    allocated: usize,
    image: bool,
}

#[derive(Debug)]
struct State {
    files: Vec<File>,
    names: Names<usize>,
    durable_names: Names<usize>,
    unsynced_names: Vec<NameChange<usize>>,
    /// Directories that somebody has taken.
    locked: BTreeSet<PathBuf>,
    random: StdRng,
    /// Bytes that the log may take.
    room: usize,
    /// The next such operation but so many fails.
    failing: Option<(Op, u32)>,
    /// After so many more changes the process that makes them is dead, and changes nothing any more.
    dies_after: Option<u32>,
    dead: bool,
    planted: Option<Planted>,
    /// For the figures.
    ops: u64,
    struck: u64,
}

/// A directory of the disk, the log's at first; clones are the same one.
#[derive(Debug, Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    /// What the names of its files begin with.
    prefix: String,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, planted: Option<Planted>) -> Self {
        let state = State {
            files: Vec::new(),
            names: Names::new(),
            durable_names: Names::new(),
            unsynced_names: Vec::new(),
            locked: BTreeSet::new(),
            random: StdRng::seed_from_u64(seed),
            room: usize::MAX,
            failing: None,
            dies_after: None,
            dead: false,
            planted,
            ops: 0,
            struck: 0,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            path: LOG.into(),
            prefix: String::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The name of a file of this directory, which is none of another.
    fn own<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&self.prefix)
            .filter(|name| !name.contains('/'))
    }

    /// A durable image of zeros.
    pub fn image(&self, len: usize) -> Arc<SimFile> {
        let mut state = self.state();
        state.files.push(File {
            seen: vec![0; len],
            durable: vec![0; len],
            image: true,
            ..File::default()
        });
        Arc::new(SimFile {
            disk: self.clone(),
            id: state.files.len() - 1,
        })
    }

    /// The process that uses the disk dies after so many more changes, or never.
    pub fn die_after(&self, changes: Option<u32>) {
        self.state().dies_after = changes;
    }

    /// Whether it has died.
    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// One operation fails, after so many that don't.
    pub fn fail(&self, op: Op, after: u32) {
        self.state().failing = Some((op, after));
    }

    /// Nothing fails by itself any more.
    pub fn heal(&self) {
        let mut state = self.state();
        state.failing = None;
        state.room = usize::MAX;
    }

    /// The log has room for so many more bytes.
    pub fn leave_room(&self, bytes: usize) {
        let mut state = self.state();
        state.room = state.used() + bytes;
    }

    /// There is room again.
    pub fn make_room(&self) {
        self.state().room = usize::MAX;
    }

    /// Does something while nothing fails.
    pub fn undisturbed<T>(&self, what: impl FnOnce() -> T) -> T {
        let (dies, failing) = {
            let mut state = self.state();
            (state.dies_after.take(), state.failing.take())
        };
        let done = what();
        let mut state = self.state();
        (state.dies_after, state.failing) = (dies, failing);
        done
    }

    /// The process is gone; the page cache stays.
    pub fn process_ends(&self) {
        let mut state = self.state();
        state.dead = false;
        state.dies_after = None;
        state.locked.clear();
    }

    /// The power goes.
    pub fn power_loss(&self) {
        self.process_ends();
        let mut state = self.state();
        let State {
            files,
            names,
            durable_names,
            unsynced_names,
            random,
            ..
        } = &mut *state;
        let share = [0.0, 0.1, 0.5, 0.9, 1.0][random.random_range(0..5)];
        let mut reaches = || share > 0.0 && random.random_bool(share);
        for change in unsynced_names.drain(..) {
            if reaches() {
                change.act(durable_names);
            }
        }
        names.clone_from(durable_names);
        for file in files {
            for change in file.unsynced.drain(..) {
                change.act_on(&mut file.durable, &mut reaches);
            }
            file.seen.clone_from(&file.durable);
        }
    }

    /// Operations so far, and how many of them failed.
    pub fn figures(&self) -> (u64, u64) {
        let state = self.state();
        (state.ops, state.struck)
    }

    /// Flips a bit of the log, where a second copy may heal it or not. False if there is no log.
    pub fn flip_bit(&self) -> bool {
        let mut state = self.state();
        let own = state
            .names
            .iter()
            .filter(|(name, _)| self.own(name).is_some());
        let ids: Vec<usize> = own.map(|(_, id)| *id).collect();
        if ids.is_empty() {
            return false;
        }
        let id = ids[state.random.random_range(0..ids.len())];
        let len = state.files[id].seen.len();
        if len == 0 {
            return false;
        }
        let at = state.random.random_range(0..len);
        let bit = 1 << state.random.random_range(0..8);
        let file = &mut state.files[id];
        file.seen[at] ^= bit;
        if let Some(byte) = file.durable.get_mut(at) {
            *byte ^= bit;
        }
        true
    }
}

impl State {
    fn used(&self) -> usize {
        let logs = self.names.values().map(|id| &self.files[*id]);
        logs.map(|file| file.seen.len().max(file.allocated)).sum()
    }

    /// Whether an operation fails. A change that comes when the process is dead fails as well, so that it does nothing.
    fn check(&mut self, op: Option<Op>, change: bool) -> io::Result<()> {
        self.ops += 1;
        if change && let Some(left) = &mut self.dies_after {
            if *left == 0 {
                self.dead = true;
            } else {
                *left -= 1;
            }
        }
        if self.dead {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        if let Some((failing, after)) = &mut self.failing
            && Some(*failing) == op
        {
            if *after == 0 {
                self.failing = None;
                self.struck += 1;
                return Err(io::Error::from_raw_os_error(EIO));
            }
            *after -= 1;
        }
        Ok(())
    }

    fn lies(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    fn write(&mut self, id: usize, offset: u64, mut bytes: Vec<u8>) -> io::Result<()> {
        let image = self.files[id].image;
        let op = if image { Op::WriteImage } else { Op::WriteLog };
        let mut outcome = self.check(Some(op), true);
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        if outcome.is_ok() && !image {
            let file = &self.files[id];
            let held = file.seen.len().max(file.allocated);
            let room = self.room.saturating_sub(self.used()) + held;
            if offset + bytes.len() > room {
                outcome = Err(io::Error::from_raw_os_error(ENOSPC));
                self.struck += 1;
                bytes.truncate(room.saturating_sub(offset));
            }
        }
        if outcome.is_err() {
            // A part of it is there, all the same: whole sectors.
            let sectors = self.random.random_range(0..=bytes.len() / SECTOR);
            bytes.truncate(sectors * SECTOR);
        }
        if !bytes.is_empty() {
            self.change(id, Change::Write { offset, bytes });
        }
        outcome
    }

    fn change(&mut self, id: usize, change: Change) {
        let file = &mut self.files[id];
        change.act_on(&mut file.seen, || true);
        file.unsynced.push(change);
    }

    fn sync(&mut self, id: usize) -> io::Result<()> {
        let image = self.files[id].image;
        let op = if image { Op::SyncImage } else { Op::SyncLog };
        let outcome = self.check(Some(op), true);
        if self.dead {
            return outcome;
        }
        if image && self.lies(Planted::SkipImageSync)
            || !image && self.lies(Planted::SkipDataSync) && ends_with_data(&self.files[id])
        {
            return Ok(());
        }
        let failed = outcome.is_err();
        let file = &mut self.files[id];
        for change in file.unsynced.drain(..) {
            // A sync that fails forgets what it could not write: the next one does not know of it.
            let reaches = || !failed || self.random.random_bool(0.5);
            change.act_on(&mut file.durable, reaches);
        }
        outcome
    }
}

/// Whether the last change was no state record and no header.
fn ends_with_data(file: &File) -> bool {
    match file.unsynced.last() {
        Some(Change::Write { offset, bytes }) => {
            let state = bytes.len() == STATE_RECORD
                && bytes[512..STATE_RECORD - 512].iter().all(|byte| *byte == 0);
            *offset > 0 && !state
        }
        _ => false,
    }
}
