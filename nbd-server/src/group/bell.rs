//! A bell for requests that wait until something about their group changes. Knows nothing of what changes.

use std::sync::{Condvar, Mutex, PoisonError};

/// Counts its rings, so that none is missed between looking and waiting: take a ticket, look, wait past the ticket.
#[derive(Debug, Default)]
pub struct Bell {
    rings: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    /// The rings so far.
    pub fn ticket(&self) -> u64 {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes everyone who waits.
    pub fn ring(&self) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        *rings = rings.wrapping_add(1);
        self.changed.notify_all();
    }

    /// Returns when the bell has rung since `ticket` was taken.
    pub fn wait_past(&self, ticket: u64) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        while *rings == ticket {
            rings = self
                .changed
                .wait(rings)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
