//! One disk of a group: its layers (open epoch, sealed and committed epochs, image) and what an attachment may do with
//! them. Decides nothing: the gate and the generation are set by the group from its barriers.
//!
//! All locks of a group's disks are taken in their order, and after the lock of the group's core; nothing here takes
//! another lock while it holds its own.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use epoch_log::{Epoch, Generation};

use super::barriers::{FlushRule, Gate};
use super::budget::Budget;
use super::image::Image;
use super::overlay::{Clear, Content, Overlay, Span, part_of};
use crate::export::IoError;
use crate::metrics::Meter;

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
pub enum Change<'a> {
    /// These bytes.
    Data(&'a [u8]),
    /// No data, for `len` bytes.
    Clear {
        /// Length in bytes.
        len: u64,
        /// How.
        clear: Clear,
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
    gate: Gate,
    /// The same for those who have no lock yet: writes go into the open epoch. Only a hint.
    holds: Arc<AtomicBool>,
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
    /// Sets what writes do.
    pub fn set_gate(&mut self, gate: Gate) {
        self.gate = gate;
        self.holds
            .store(matches!(gate, Gate::Held(_)), Ordering::Relaxed);
    }

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

    /// The layers that an attachment sees, newest first.
    fn layers(&self, access: Access) -> impl Iterator<Item = &Overlay> {
        let open = (access == Access::Full).then_some(&self.open);
        let sealed = self
            .layers
            .iter()
            .rev()
            .filter(move |layer| access == Access::Full || layer.epoch <= self.committed)
            .map(|layer| layer.overlay.as_ref());
        open.into_iter()
            .chain(sealed)
            .filter(|layer| !layer.is_empty())
    }

    /// Fills what the layers cover, newest first; what remains is the image's.
    fn read_layers(&self, access: Access, offset: u64, buf: &mut [u8]) -> Vec<Span> {
        let mut gaps = vec![Span {
            start: offset,
            end: offset + buf.len() as u64,
        }];
        for layer in self.layers(access) {
            if gaps.is_empty() {
                break;
            }
            layer.read(offset, buf, &mut gaps);
        }
        gaps
    }

    /// Whether the image has all of a range.
    fn is_untouched(&self, access: Access, offset: u64, len: u64) -> bool {
        let mut touched = false;
        let mut gaps = vec![Span {
            start: offset,
            end: offset + len,
        }];
        for layer in self.layers(access) {
            layer.cover(&mut gaps, |_, _| touched = true);
        }
        !touched
    }
}

/// What a disk starts with.
#[derive(Debug)]
pub struct Held {
    /// The image holds everything up to this epoch.
    pub committed: Epoch,
    /// Sealed epochs above it, oldest first.
    pub sealed: VecDeque<Layer>,
    /// What is written now.
    pub open: Overlay,
}

#[cfg(test)]
impl Held {
    /// Nothing, before the first epoch.
    pub fn nothing(budget: &Arc<Budget>) -> Self {
        Self {
            committed: Epoch(0),
            sealed: VecDeque::new(),
            open: Overlay::new(budget, super::arena::Home::TEST),
        }
    }
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
    /// What its connections have done.
    pub meter: Arc<Meter>,
    state: RwLock<DiskState>,
    /// See [`DiskState`].
    holds: Arc<AtomicBool>,
    budget: Arc<Budget>,
}

impl Disk {
    /// A disk that starts with `held` over its image. Its gate is closed.
    pub fn new(
        name: String,
        image: Image,
        read_only: bool,
        budget: &Arc<Budget>,
        held: Held,
    ) -> Self {
        let holds = Arc::new(AtomicBool::new(false));
        let state = DiskState {
            gate: Gate::Closed,
            holds: Arc::clone(&holds),
            generation: Generation(0),
            open: held.open,
            layers: held.sealed,
            committed: held.committed,
        };
        Self {
            name,
            read_only,
            image,
            meter: Arc::default(),
            state: RwLock::new(state),
            holds,
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

    /// The image's file, if it has the newest of this range, and in the page cache.
    pub fn cached_in(&self, rights: &Rights, offset: u64, len: u64) -> Option<&File> {
        let state = self.look();
        let access = state.access(rights).ok()?;
        let untouched = state.is_untouched(access, offset, len);
        drop(state);
        self.image.cached(offset, len).filter(|_| untouched)
    }

    /// No layer holds anything.
    pub fn is_bare(&self) -> bool {
        let state = self.look();
        state.open.is_empty() && state.layers.iter().all(|layer| layer.overlay.is_empty())
    }

    /// Tells `found` what the layers hold of `span`, in no order, and returns what is the image's.
    pub fn cover(
        &self,
        rights: &Rights,
        span: Span,
        mut found: impl FnMut(Span, Content<'_>),
    ) -> Result<Vec<Span>, IoError> {
        let state = self.look();
        let access = state.access(rights)?;
        let mut gaps = vec![span];
        for layer in state.layers(access) {
            layer.cover(&mut gaps, &mut found);
        }
        Ok(gaps)
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
        Ok(true)
    }

    /// Writes, if the gate and the budget allow it now. `may_block`: the image may be written to.
    pub fn write(
        &self,
        rights: &Rights,
        offset: u64,
        change: &Change<'_>,
        may_block: bool,
    ) -> Result<Attempt, IoError> {
        loop {
            // Both ways check again under the lock that they take.
            if self.holds.load(Ordering::Relaxed) {
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
                    Change::Data(data) => state.open.write(offset, data),
                    Change::Clear { len, clear } => state.open.clear(offset, *len, *clear),
                }
                drop(state);
                return Ok(Attempt::Held(gate));
            }
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
                        Change::Clear { len, clear } => self.image.clear(offset, *len, *clear)?,
                    }
                    return Ok(Attempt::Through);
                }
                // The gate has changed since the hint was read.
                Gate::Held(_) => {}
            }
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
