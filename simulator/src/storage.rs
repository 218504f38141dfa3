//! The disk of the storage host: the log's directory and the images, in memory. What was synced is there after a power loss; of the
//! rest any sector and any change of a name may be, in any order. It fails when it is told to. Knows nothing of what the bytes mean.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use epoch_log::LogError;
use epoch_log::forgetful::{Change, NameChange, Names, SECTOR};
use epoch_log::storage::{Storage, StorageFile, StorageLock};
use nbd_server::group::RawImage;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::planted::Planted;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
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
    /// Counts the holders of the lock; none if nobody has it.
    locked: bool,
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

/// The disk; clones are the same one.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64, planted: Option<Planted>) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: Vec::new(),
            names: Names::new(),
            durable_names: Names::new(),
            unsynced_names: Vec::new(),
            locked: false,
            random: StdRng::seed_from_u64(seed),
            room: usize::MAX,
            failing: None,
            dies_after: None,
            dead: false,
            planted,
            ops: 0,
            struck: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        state.locked = false;
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
        let ids: Vec<usize> = state.names.values().copied().collect();
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

impl Storage for SimDisk {
    fn path(&self) -> &Path {
        Path::new("/log")
    }

    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, LogError> {
        let mut state = self.state();
        if state.locked {
            let dir = "/log".into();
            return Err(LogError::InUse { dir, pid: None });
        }
        state.locked = true;
        Ok(Box::new(Lock))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        let mut state = self.state();
        state.check(None, true)?;
        let there = state.names.get(name).copied();
        let id = if let Some(id) = there {
            state.change(id, Change::Truncate { len: 0 });
            id
        } else {
            state.files.push(File::default());
            let id = state.files.len() - 1;
            state.rename_by(NameChange::Create(name.to_owned(), id));
            id
        };
        let disk = self.clone();
        Ok(Box::new(SimFile { disk, id }))
    }

    fn open(&self, name: &str, _writable: bool) -> io::Result<Box<dyn StorageFile>> {
        let mut state = self.state();
        state.check(None, false)?;
        let id = state.names.get(name).copied();
        let id = id.ok_or(io::ErrorKind::NotFound)?;
        let disk = self.clone();
        Ok(Box::new(SimFile { disk, id }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check(None, true)?;
        state.rename_by(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check(None, true)?;
        if !state.names.contains_key(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.rename_by(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.check(Some(Op::SyncNames), true)?;
        if state.lies(Planted::SkipDirSync) {
            return Ok(());
        }
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn random(&self) -> [u8; 16] {
        self.state().random.random()
    }
}

impl State {
    fn rename_by(&mut self, change: NameChange<usize>) {
        change.act(&mut self.names);
        self.unsynced_names.push(change);
    }
}

/// The lock of the log: it ends with the process, see [`SimDisk::process_ends`].
#[derive(Debug)]
struct Lock;

impl StorageLock for Lock {}

/// An open file, or an image.
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    id: usize,
}

impl SimFile {
    /// Looks at what a process would see, without reading.
    pub fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(&self.disk.state().files[self.id].seen)
    }

    /// Durably writes past everything: a repair from outside, while no process has the file.
    pub fn repair(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.disk.state();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let file = &mut state.files[self.id];
        for copy in [&mut file.seen, &mut file.durable] {
            copy[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Writes past everything: what only a planted mistake does.
    pub fn scribble(&self, offset: u64, bytes: &[u8]) {
        let mut state = self.disk.state();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = bytes.to_vec();
        state.change(self.id, Change::Write { offset, bytes });
    }
}

impl StorageFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.id].seen.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.check(None, false)?;
        let file = &state.files[self.id];
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = file.seen.get(from..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
        for slice in slices.iter() {
            bytes.extend_from_slice(slice);
        }
        self.disk.state().write(self.id, offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.state().sync(self.id)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(None, true)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        state.files[self.id].allocated = 0;
        state.change(self.id, Change::Truncate { len });
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(None, true)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let file = &state.files[self.id];
        let held = file.seen.len().max(file.allocated);
        if state.used() - held + len.max(held) > state.room {
            return Err(io::Error::from_raw_os_error(ENOSPC));
        }
        state.files[self.id].allocated = len;
        Ok(())
    }
}

impl RawImage for SimFile {
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        state.check(Some(Op::ReadImage), false)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let seen = state.files[self.id].seen.get(from..from + buf.len());
        buf.copy_from_slice(seen.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        self.disk.state().write(self.id, offset, parts.concat())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.disk.state().write(self.id, offset, vec![0; len])
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.state().sync(self.id)
    }
}
