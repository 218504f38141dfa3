//! The memory that a group's epochs may hold. Counts bytes; knows nothing of disks or epochs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::arena::{Arena, Class, Home};
use super::bell::Bell;
use super::slabs::{Slab, SlabPool};

/// This part of the limit waits as warm slabs for the next epochs, also when nothing is written. New memory has to be found and cleared by
/// the kernel, which on a virtual machine costs more than the write itself.
const RESERVE_PART: u64 = 4;

/// How full a budget is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// At most half.
    Easy,
    /// More than half: time for a checkpoint.
    Pressed,
}

/// The budget of one group. It is a line to wait at, not a wall: a write that finds it below its limit is let in whole.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    held: AtomicU64,
    relieved: AtomicBool,
    bell: Arc<Bell>,
    slabs: Arc<SlabPool>,
}

impl Budget {
    /// A budget of `limit` bytes of `arena` that rings `bell` when writes that wait for it may try again.
    pub fn new(limit: u64, bell: Arc<Bell>, arena: Arc<Arena>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicU64::new(0),
            relieved: AtomicBool::new(false),
            bell,
            slabs: SlabPool::new(arena, limit / RESERVE_PART),
        })
    }

    /// The limit, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether another write is let in now.
    pub fn admits(&self) -> bool {
        self.held() < self.limit || self.relieved.load(Ordering::Relaxed)
    }

    /// How full it is.
    pub fn fill(&self) -> Fill {
        if self.held() > self.limit / 2 {
            Fill::Pressed
        } else {
            Fill::Easy
        }
    }

    /// More than a quarter is held: what can give memory back should.
    pub fn is_busy(&self) -> bool {
        self.held() > self.limit / 4
    }

    /// Lets writes in although the limit is reached, until [`Budget::unrelieve`].
    pub fn relieve(&self) {
        self.relieved.store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    /// Ends [`Budget::relieve`].
    pub fn unrelieve(&self) {
        self.relieved.store(false, Ordering::Relaxed);
    }

    /// A slab for the writes of `home`. Whoever holds it charges it.
    pub fn slab(&self, class: Class, home: Home) -> Slab {
        self.slabs.take(class, home)
    }

    /// The slabs, and the arena that they lie in.
    pub fn slabs(&self) -> &Arc<SlabPool> {
        &self.slabs
    }

    /// Charges `bytes` until the charge is dropped.
    pub fn charge(self: &Arc<Self>, bytes: u64) -> Charge {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Charge {
            bytes,
            budget: Arc::clone(self),
        }
    }
}

/// A part of a budget that is taken.
#[derive(Debug)]
pub struct Charge {
    bytes: u64,
    budget: Arc<Budget>,
}

impl Charge {
    /// What is taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes `bytes` more.
    pub fn grow(&mut self, bytes: u64) {
        self.resize(self.bytes + bytes);
    }

    /// Gives `bytes` back.
    pub fn shrink(&mut self, bytes: u64) {
        self.resize(self.bytes.saturating_sub(bytes));
    }

    /// Changes what is taken to `bytes`.
    pub fn resize(&mut self, bytes: u64) {
        if bytes >= self.bytes {
            self.budget
                .held
                .fetch_add(bytes - self.bytes, Ordering::Relaxed);
        } else {
            self.budget.give_back(self.bytes - bytes);
        }
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

impl Budget {
    fn give_back(&self, bytes: u64) {
        let before = self.held.fetch_sub(bytes, Ordering::Relaxed);
        if before >= self.limit && before.saturating_sub(bytes) < self.limit {
            self.bell.ring();
        }
    }
}

#[cfg(test)]
impl Budget {
    /// Without a bound, in memory that goes with the test.
    #[allow(clippy::unwrap_used)]
    pub fn endless() -> Arc<Self> {
        Self::new(u64::MAX, Arc::default(), Arena::unnamed().unwrap())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn budget(limit: u64, bell: Arc<Bell>) -> Arc<Budget> {
        Budget::new(limit, bell, Arena::unnamed().unwrap())
    }

    #[test]
    fn the_bell_rings_when_the_held_bytes_fall_below_the_limit() {
        let bell: Arc<Bell> = Arc::default();
        let budget = budget(100, Arc::clone(&bell));
        let mut charge = budget.charge(120);
        let ticket = bell.ticket();
        charge.resize(110);
        assert_eq!(bell.ticket(), ticket);
        charge.resize(10);
        assert_ne!(bell.ticket(), ticket);
        assert_eq!(budget.fill(), Fill::Easy);
    }

    #[test]
    fn relief_lets_writes_in_until_it_ends() {
        let budget = budget(100, Arc::default());
        let _charge = budget.charge(120);
        assert!(!budget.admits());
        budget.relieve();
        assert!(budget.admits());
        budget.unrelieve();
        assert!(!budget.admits());
    }
}
