//! Bounds what one connection has under way, in requests and in bytes: credit is taken before a request leaves the connection's own
//! thread and comes back when its reply is sent or dropped.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// The credit of one connection.
#[derive(Debug)]
pub struct Credits {
    max_requests: usize,
    max_bytes: usize,
    taken: Mutex<Taken>,
    returned: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    requests: usize,
    bytes: usize,
}

/// Credit for one request; it returns when dropped.
#[derive(Debug)]
pub struct Credit {
    owner: Arc<Credits>,
    bytes: usize,
}

impl Credits {
    /// Credit for so many requests with so many bytes in all.
    pub fn new(max_requests: usize, max_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            max_requests,
            max_bytes,
            taken: Mutex::new(Taken::default()),
            returned: Condvar::new(),
        })
    }

    /// A single request always fits, however large, or it would wait for ever.
    fn fits(&self, taken: Taken, bytes: usize) -> bool {
        taken.requests == 0
            || (taken.requests < self.max_requests
                && taken.bytes.saturating_add(bytes) <= self.max_bytes)
    }

    /// Takes credit if there is enough.
    pub fn try_take(self: &Arc<Self>, bytes: usize) -> Option<Credit> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.fits(*taken, bytes) {
            return None;
        }
        taken.requests += 1;
        taken.bytes += bytes;
        Some(Credit {
            owner: Arc::clone(self),
            bytes,
        })
    }

    /// Takes credit, waiting for others to return it.
    pub fn take(self: &Arc<Self>, bytes: usize) -> Credit {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self
            .returned
            .wait_while(taken, |taken| !self.fits(*taken, bytes))
            .unwrap_or_else(PoisonError::into_inner);
        taken.requests += 1;
        taken.bytes += bytes;
        Credit {
            owner: Arc::clone(self),
            bytes,
        }
    }

    /// Waits until all credit is back.
    pub fn wait_until_all_returned(&self) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.returned
                .wait_while(taken, |taken| taken.requests > 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut taken = self
            .owner
            .taken
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        taken.requests -= 1;
        taken.bytes -= self.bytes;
        drop(taken);
        // Only the connection's own thread ever waits.
        self.owner.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_credit_comes_back() {
        let credits = Credits::new(2, 100);
        let first = credits.try_take(60);
        assert!(first.is_some());
        assert!(credits.try_take(41).is_none(), "more bytes than are left");
        let second = credits.try_take(40);
        assert!(second.is_some());
        assert!(credits.try_take(0).is_none(), "more requests than are left");
        drop(first);
        assert!(credits.try_take(60).is_some());
    }

    #[test]
    fn one_request_above_the_bound_goes_alone() {
        let credits = Credits::new(2, 100);
        let large = credits.try_take(1000);
        assert!(large.is_some());
        assert!(credits.try_take(1).is_none());
        drop(large);
        credits.wait_until_all_returned();
    }
}
