//! The memory of a guest at a standby while checkpoints are merged into it: which pages were merged since the last point, and the copy
//! of one point, taken out piece by piece while merges go on.
//!
//! A merge never waits for a disk. Whoever takes a point out copies a small piece of memory under the lock; a merge that is about to
//! overwrite a page of the point that was not copied yet *rescues* it first. So the point is what memory was when it began. A disk that
//! is too slow for the guest would make the rescued pages many: then the point is given up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qemu_glue::{GuestRam, PAGE_SIZE};

use super::pages::Pages;

/// [`PAGE_SIZE`] for buffers.
pub(super) const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_SIZE);
/// Pages that are copied under the lock at once: for so long a merge may wait, well below a millisecond.
const PIECE: u64 = 64;
/// Most rescued pages: this part of memory, and at least [`RESCUED_AT_LEAST`].
const RESCUED_PART: u64 = 4;
/// So many rescued pages are always allowed: 16 MiB.
const RESCUED_AT_LEAST: usize = 4096;

/// Why a point is not taken out to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GivenUp {
    /// Memory changes faster than it is written out.
    #[error("the guest changes its memory faster than this disk takes it")]
    TooFast,
    /// The memory is not that of a standby any more.
    #[error("the source was lost or has ended meanwhile")]
    Over,
}

/// A guest's memory at its standby.
#[derive(Debug)]
pub(crate) struct Tracked {
    ram: Arc<GuestRam>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Merged since the last point began.
    dirty: Pages,
    /// All pages of the point under way.
    taken: Pages,
    /// Those of them that are not copied yet.
    pending: Pages,
    /// What a merge was about to overwrite.
    rescued: BTreeMap<u64, Vec<u8>>,
    /// All pages of the point below this one are copied.
    cursor: u64,
    rescued_limit: usize,
    given_up: Option<GivenUp>,
    over: bool,
    /// Nothing is known of what the last point held.
    whole: bool,
}

impl Tracked {
    /// The memory of a standby to which a source has just come: all of it belongs to the first point.
    pub(super) fn new(ram: Arc<GuestRam>) -> Self {
        let pages = ram.len() / PAGE_SIZE;
        let limit = usize::try_from(pages / RESCUED_PART).unwrap_or(usize::MAX);
        Self {
            ram,
            state: Mutex::new(State {
                dirty: Pages::all(pages),
                taken: Pages::none(pages),
                pending: Pages::none(pages),
                rescued: BTreeMap::new(),
                cursor: 0,
                rescued_limit: limit.max(RESCUED_AT_LEAST),
                given_up: None,
                over: false,
                whole: true,
            }),
        }
    }

    /// To be called before a range is written. Does not block on anything but a short copy.
    pub(crate) fn before_write(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let mut state = self.state();
        let state = &mut *state;
        for page in offset / PAGE_SIZE..=(offset + len - 1) / PAGE_SIZE {
            state.dirty.add(page);
            if state.pending.remove(page) {
                let mut held = vec![0; PAGE];
                if self.ram.read(page * PAGE_SIZE, &mut held).is_ok() {
                    state.rescued.insert(page, held);
                }
            }
        }
        if state.rescued.len() > state.rescued_limit {
            state.give_up(GivenUp::TooFast);
        }
    }

    /// Begins a point: memory as it is now. True if it has to be compared with what is kept, as it is not known what has changed.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.state();
        let state = &mut *state;
        std::mem::swap(&mut state.taken, &mut state.dirty);
        state.dirty.clear();
        state.pending.clone_from(&state.taken);
        state.rescued.clear();
        state.cursor = 0;
        state.given_up = state.over.then_some(GivenUp::Over);
        std::mem::take(&mut state.whole)
    }

    /// The next piece of the point, in rising order: its offset; `buffer` is filled with it. None: that was all.
    ///
    /// # Errors
    /// [`GivenUp`].
    pub(super) fn next(&self, buffer: &mut Vec<u8>) -> Result<Option<u64>, GivenUp> {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(why) = state.given_up {
            return Err(why);
        }
        let rescued = state.rescued.keys().next().copied();
        let Some(first) = state
            .pending
            .next(state.cursor)
            .into_iter()
            .chain(rescued)
            .min()
        else {
            return Ok(None);
        };
        buffer.clear();
        for page in first..first + PIECE {
            if let Some(held) = state.rescued.remove(&page) {
                buffer.extend_from_slice(&held);
            } else if state.pending.remove(page) {
                let at = buffer.len();
                buffer.resize(at + PAGE, 0);
                let part = buffer.get_mut(at..).unwrap_or_default();
                // Never outside: there are as many bits as pages.
                if self.ram.read(page * PAGE_SIZE, part).is_err() {
                    return Err(GivenUp::Over);
                }
            } else {
                break;
            }
        }
        state.cursor = first + (buffer.len() as u64) / PAGE_SIZE;
        Ok(Some(first * PAGE_SIZE))
    }

    /// The point under way was kept.
    pub(super) fn kept(&self) {
        self.state().end();
    }

    /// It was not: its pages belong to the next one. `unsure`: nor is it known what is kept now.
    pub(super) fn not_kept(&self, compared: bool, unsure: bool) {
        let mut state = self.state();
        let state = &mut *state;
        state.dirty.add_all(&state.taken);
        if compared || unsure {
            state.dirty = Pages::all(self.ram.len() / PAGE_SIZE);
            state.whole = true;
        }
        state.end();
    }

    fn over(&self) {
        let mut state = self.state();
        state.over = true;
        state.give_up(GivenUp::Over);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_up(&mut self, why: GivenUp) {
        self.given_up = Some(why);
        self.pending.clear();
        self.rescued.clear();
    }

    fn end(&mut self) {
        self.pending.clear();
        self.rescued.clear();
        self.given_up = None;
    }
}

/// Ends a point that is under way when it is dropped: from then on others write to the memory.
#[derive(Debug)]
pub(crate) struct Watch(pub(super) Arc<Tracked>);

impl std::ops::Deref for Watch {
    type Target = Tracked;

    fn deref(&self) -> &Tracked {
        &self.0
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.over();
    }
}
