//! The memory that a group's epochs may hold. Counts bytes; knows nothing of disks or epochs.
//!
//! A guest's payload arrives as a [`Bytes`] of its own and is cut into slices by later writes. Its buffer lives while any
//! slice of it lives, so that is how long it is charged: [`Budget::hold`] ties the charge to the buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::bell::Bell;

/// What one held buffer costs beyond its bytes: its allocation, the owner behind it, and the charge.
const BUFFER_BYTES: u64 = 128;

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
}

impl Budget {
    /// A budget of `limit` bytes that rings `bell` when writes that wait for it may try again.
    pub fn new(limit: u64, bell: Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            limit,
            held: AtomicU64::new(0),
            relieved: AtomicBool::new(false),
            bell,
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

    /// Lets writes in although the limit is reached, until [`Budget::unrelieve`].
    pub fn relieve(&self) {
        self.relieved.store(true, Ordering::Relaxed);
        self.bell.ring();
    }

    /// Ends [`Budget::relieve`].
    pub fn unrelieve(&self) {
        self.relieved.store(false, Ordering::Relaxed);
    }

    /// The same bytes, charged until the last slice of them is dropped. Copies nothing.
    pub fn hold(self: &Arc<Self>, data: Bytes) -> Bytes {
        let charge = self.charge(BUFFER_BYTES.saturating_add(data.len() as u64));
        Bytes::from_owner(Held {
            data,
            _charge: charge,
        })
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

struct Held {
    data: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_charged_while_any_slice_of_it_lives() {
        let budget = Budget::new(1000, Arc::default());
        let held = budget.hold(Bytes::from(vec![7; 900]));
        let slice = held.slice(10..11);
        drop(held);
        assert_eq!(budget.held(), 900 + BUFFER_BYTES);
        assert!(!budget.admits());
        assert_eq!(&slice[..], &[7]);
        drop(slice);
        assert_eq!(budget.held(), 0);
        assert!(budget.admits());
    }

    #[test]
    fn the_bell_rings_when_the_held_bytes_fall_below_the_limit() {
        let bell: Arc<Bell> = Arc::default();
        let budget = Budget::new(100, Arc::clone(&bell));
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
        let budget = Budget::new(100, Arc::default());
        let _charge = budget.charge(120);
        assert!(!budget.admits());
        budget.relieve();
        assert!(budget.admits());
        budget.unrelieve();
        assert!(!budget.admits());
    }
}
