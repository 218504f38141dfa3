//! One disk of a group: its layers (open epoch, sealed and committed epochs, image) and what an attachment may do with
//! them. Decides nothing: the gate and the generation are set by the group from its barriers.
//!
//! All locks of a group's disks are taken in their order, and after the lock of the group's core; nothing here takes
//! another lock while it holds its own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use epoch_log::{Epoch, Generation};

use super::barriers::{FlushRule, Gate};
use super::budget::Budget;
use super::image::Image;
use super::overlay::{Overlay, Span, part_of};
use crate::export::IoError;

/// Stands for "of no generation: a standby's".
const PARKED: u64 = u64::MAX;
/// Stands for "of a generation that never comes": cut off.
const FORGOTTEN: u64 = u64::MAX - 1;

/// What one connection may do. Changed only while all disks of the group are locked, read while one is.
#[derive(Debug)]
pub struct Rights {
    generation: AtomicU64,
    writable: AtomicBool,
}

impl Rights {
    /// Of a generation: over when that is over.
    pub fn of(generation: Generation, writable: bool) -> Self {
        Self {
            generation: AtomicU64::new(generation.0),
            writable: AtomicBool::new(writable),
        }
    }

    /// Of a parked standby: reads committed state in any generation.
    pub fn parked() -> Self {
        Self {
            generation: AtomicU64::new(PARKED),
            writable: AtomicBool::new(false),
        }
    }

    /// Whether they are of a parked standby.
    pub fn is_parked(&self) -> bool {
        self.generation.load(Ordering::Relaxed) == PARKED
    }

    /// The standby has taken over.
    pub fn promote(&self, generation: Generation) {
        self.generation.store(generation.0, Ordering::Relaxed);
        self.writable.store(true, Ordering::Relaxed);
    }

    /// The standby is no longer known.
    pub fn forget(&self) {
        self.generation.store(FORGOTTEN, Ordering::Relaxed);
    }
}

/// What a write puts on a disk.
#[derive(Debug, Clone)]
pub enum Change {
    /// These bytes.
    Data(Bytes),
    /// Zeros, or anything (`trim`), for `len` bytes.
    Clear {
        /// Length in bytes.
        len: u64,
        /// The guest no longer needs the range.
        trim: bool,
    },
}

/// How an attempt to write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It is in the image.
    Through,
    /// It is in the open epoch.
    Held(Gate),
    /// The gate is closed.
    Closed,
    /// The memory budget is used up.
    OverBudget(Gate),
    /// It would have to go to the image, which may block.
    WouldBlock,
}

/// A sealed epoch of this disk.
#[derive(Debug)]
pub struct Layer {
    /// The epoch.
    pub epoch: Epoch,
    /// What was written in it.
    pub overlay: Arc<Overlay>,
}

/// What the lock of a disk guards.
#[derive(Debug)]
pub struct DiskState {
    /// What writes do.
    pub gate: Gate,
    /// Whose writes are let in.
    pub generation: Generation,
    /// What is written now.
    pub open: Overlay,
    /// Sealed epochs, oldest first.
    pub layers: VecDeque<Layer>,
    /// The newest committed epoch: layers up to it are what a parked standby sees.
    pub committed: Epoch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Reads its own writes, and writes.
    Full,
    /// Reads what is committed.
    Committed,
}

impl DiskState {
    fn access(&self, rights: &Rights) -> Result<Access, IoError> {
        let generation = rights.generation.load(Ordering::Relaxed);
        if generation == PARKED {
            Ok(Access::Committed)
        } else if generation != self.generation.0 {
            Err(IoError::Shutdown)
        } else if rights.writable.load(Ordering::Relaxed) {
            Ok(Access::Full)
        } else {
            Ok(Access::Committed)
        }
    }

    fn write_access(&self, rights: &Rights) -> Result<(), IoError> {
        match self.access(rights)? {
            Access::Full => Ok(()),
            Access::Committed => Err(IoError::Perm),
        }
    }

    /// Whether no epoch that could be rolled back holds anything.
    fn holds_nothing(&self) -> bool {
        let committed = |layer: &Layer| layer.epoch <= self.committed;
        self.open.is_empty()
            && self
                .layers
                .iter()
                .all(|l| committed(l) || l.overlay.is_empty())
    }

    /// Fills what the layers cover, newest first; what remains is the image's.
    fn read_layers(&self, access: Access, offset: u64, buf: &mut [u8]) -> Vec<Span> {
        let mut gaps = vec![Span {
            start: offset,
            end: offset + buf.len() as u64,
        }];
        if access == Access::Full {
            self.open.read(offset, buf, &mut gaps);
        }
        for layer in self.layers.iter().rev() {
            if gaps.is_empty() {
                break;
            }
            if access == Access::Full || layer.epoch <= self.committed {
                layer.overlay.read(offset, buf, &mut gaps);
            }
        }
        gaps
    }
}

/// Requests and bytes since the gateway started.
#[derive(Debug, Default)]
pub struct Counters {
    /// READ requests answered.
    pub reads: AtomicU64,
    /// WRITE, TRIM and WRITE_ZEROES requests answered.
    pub writes: AtomicU64,
    /// Bytes read.
    pub bytes_read: AtomicU64,
    /// Bytes of WRITE requests.
    pub bytes_written: AtomicU64,
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    /// Its name in the group.
    pub name: String,
    /// Nobody may write.
    pub read_only: bool,
    /// The lowest layer.
    pub image: Image,
    /// What was done.
    pub counters: Counters,
    state: RwLock<DiskState>,
    budget: Arc<Budget>,
}

impl Disk {
    /// A disk whose image holds everything committed up to `committed`. Its gate is closed.
    pub fn new(
        name: String,
        image: Image,
        read_only: bool,
        budget: &Arc<Budget>,
        committed: Epoch,
    ) -> Self {
        let state = DiskState {
            gate: Gate::Closed,
            generation: Generation(0),
            open: Overlay::new(budget),
            layers: VecDeque::new(),
            committed,
        };
        Self {
            name,
            read_only,
            image,
            counters: Counters::default(),
            state: RwLock::new(state),
            budget: Arc::clone(budget),
        }
    }

    /// The state, for a change. In sync mode it waits for the writes that are on their way to the image.
    pub fn lock(&self) -> RwLockWriteGuard<'_, DiskState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) -> RwLockReadGuard<'_, DiskState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is written in the open epoch.
    pub fn open_is_empty(&self) -> bool {
        self.look().open.is_empty()
    }

    /// Reads without waiting for storage; false if that is not possible.
    pub fn try_read(&self, rights: &Rights, offset: u64, buf: &mut [u8]) -> Result<bool, IoError> {
        self.read_with(rights, offset, buf, Image::try_read)
    }

    /// Reads.
    pub fn read(&self, rights: &Rights, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.read_with(rights, offset, buf, |image, offset, buf| {
            image.read(offset, buf).map(|()| true)
        })
        .map(|_| ())
    }

    fn read_with(
        &self,
        rights: &Rights,
        offset: u64,
        buf: &mut [u8],
        read_image: impl Fn(&Image, u64, &mut [u8]) -> std::io::Result<bool>,
    ) -> Result<bool, IoError> {
        // The image is read without the lock. What the applier may write meanwhile was written by the guest after this
        // read began, or is the same as what the layers said.
        let gaps = {
            let state = self.look();
            let access = state.access(rights)?;
            state.read_layers(access, offset, buf)
        };
        for gap in gaps {
            if !read_image(
                &self.image,
                gap.start,
                part_of(buf, gap.start - offset, gap.end - offset),
            )? {
                return Ok(false);
            }
        }
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters
            .bytes_read
            .fetch_add(buf.len() as u64, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes, if the gate and the budget allow it now. `may_block`: the image may be written to.
    pub fn write(
        &self,
        rights: &Rights,
        offset: u64,
        change: &Change,
        may_block: bool,
    ) -> Result<Attempt, IoError> {
        loop {
            let state = self.look();
            state.write_access(rights)?;
            match state.gate {
                Gate::Broken => return Err(IoError::Io),
                Gate::Closed => return Ok(Attempt::Closed),
                Gate::Through if !may_block => return Ok(Attempt::WouldBlock),
                Gate::Through => {
                    // Under the lock: a change of the gate waits until the image has it.
                    match change {
                        Change::Data(data) => self.image.write(offset, data)?,
                        Change::Clear { len, trim } => self.image.clear(offset, *len, *trim)?,
                    }
                    self.count(change);
                    return Ok(Attempt::Through);
                }
                Gate::Held(_) => {}
            }
            drop(state);
            let mut state = self.lock();
            state.write_access(rights)?;
            let gate = state.gate;
            if !matches!(gate, Gate::Held(_)) {
                continue;
            }
            if !self.budget.admits() {
                return Ok(Attempt::OverBudget(gate));
            }
            match change {
                Change::Data(data) => state.open.write(offset, data.clone()),
                Change::Clear { len, trim } => state.open.clear(offset, *len, *trim),
            }
            drop(state);
            self.count(change);
            return Ok(Attempt::Held(gate));
        }
    }

    fn count(&self, change: &Change) {
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        if let Change::Data(data) = change {
            self.counters
                .bytes_written
                .fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    }

    /// What a FLUSH by this attachment has to do; none if it has nothing to flush.
    ///
    /// A flush that would wait for the first commit has nothing to wait for while no epoch holds anything: all that was
    /// written is in the image. QEMU flushes between the first seal and its commit, to complete the very checkpoint
    /// that the commit needs.
    pub fn flush_gate(&self, rights: &Rights) -> Result<Option<Gate>, IoError> {
        let state = self.look();
        let gate = match state.gate {
            Gate::Held(FlushRule::Waits) if state.holds_nothing() => Gate::Through,
            gate => gate,
        };
        Ok((state.access(rights)? == Access::Full).then_some(gate))
    }
}
