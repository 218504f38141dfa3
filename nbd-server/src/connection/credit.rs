//! Bounds what one connection has under way, in requests and in bytes, and the bytes of all connections together: credit is taken before a request leaves the connection's own
//! thread and comes back when its reply is sent or dropped.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a connection has for itself, whatever others do: enough for its small requests.
const OWN: usize = 1 << 20;
/// How often a connection that waits for others looks whether it is to end.
const STEP: Duration = Duration::from_millis(50);

/// Bytes for what connections have under way beyond [`OWN`], shared by all of them.
#[derive(Debug)]
pub struct Pool {
    max: usize,
    used: Mutex<usize>,
    returned: Condvar,
}

impl Pool {
    /// A pool of `max` bytes.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            used: Mutex::new(0),
            returned: Condvar::new(),
        })
    }

    /// A connection may hold as much as it leaves to the others: with one that is half, with two a third each, and there is always
    /// something left for one that comes. What is larger than that goes when the pool is empty.
    fn fits(&self, used: usize, held: usize, more: usize) -> bool {
        let left = self.max.saturating_sub(used);
        more == 0 || used == 0 || (more <= left && held.saturating_add(more) <= left)
    }

    /// Takes `more` for a connection that holds `held`.
    fn try_take(&self, held: usize, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        let mut used = lock(&self.used);
        let fits = self.fits(*used, held, more);
        if fits {
            *used += more;
        }
        fits
    }

    fn wait(&self) {
        let used = lock(&self.used);
        drop(
            self.returned
                .wait_timeout(used, STEP)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    fn give_back(&self, bytes: usize) {
        if bytes > 0 {
            *lock(&self.used) -= bytes;
            self.returned.notify_all();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The credit of one connection.
#[derive(Debug)]
pub struct Credits {
    max_requests: usize,
    max_bytes: usize,
    pool: Arc<Pool>,
    taken: Mutex<Taken>,
    returned: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    requests: usize,
    bytes: usize,
    /// Of the bytes, those that are the pool's.
    pooled: usize,
}

/// Credit for one request; it returns when dropped.
#[derive(Debug)]
pub struct Credit {
    owner: Arc<Credits>,
    bytes: usize,
}

impl Credits {
    /// Credit for so many requests with so many bytes in all, those beyond a connection's own out of `pool`.
    pub fn new(max_requests: usize, max_bytes: usize, pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self {
            max_requests,
            max_bytes,
            pool,
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
        let mut taken = lock(&self.taken);
        if !self.fits(*taken, bytes) {
            return None;
        }
        let beyond = taken.bytes.saturating_add(bytes).saturating_sub(OWN);
        let more = beyond.saturating_sub(taken.pooled);
        if !self.pool.try_take(taken.pooled, more) {
            return None;
        }
        taken.pooled += more;
        taken.requests += 1;
        taken.bytes += bytes;
        Some(Credit {
            owner: Arc::clone(self),
            bytes,
        })
    }

    /// Takes credit, waiting for this connection's requests or others' to return it. `None`: `given_up` was true meanwhile. Only the
    /// connection's own thread ever waits.
    pub fn take(self: &Arc<Self>, bytes: usize, given_up: &dyn Fn() -> bool) -> Option<Credit> {
        loop {
            let taken = lock(&self.taken);
            drop(
                self.returned
                    .wait_while(taken, |taken| !self.fits(*taken, bytes))
                    .unwrap_or_else(PoisonError::into_inner),
            );
            if let Some(credit) = self.try_take(bytes) {
                return Some(credit);
            }
            if given_up() {
                return None;
            }
            self.pool.wait();
        }
    }

    /// True when no request is under way.
    pub fn are_all_returned(&self) -> bool {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.requests == 0
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
        let owner = &self.owner;
        let mut taken = lock(&owner.taken);
        taken.requests -= 1;
        taken.bytes -= self.bytes;
        let pooled = taken.pooled.min(taken.bytes.saturating_sub(OWN));
        let back = taken.pooled - pooled;
        taken.pooled = pooled;
        drop(taken);
        owner.pool.give_back(back);
        // Only the connection's own thread ever waits.
        owner.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bounds_hold_and_credit_comes_back() {
        let credits = Credits::new(2, 100, Pool::new(0));
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
        let credits = Credits::new(2, 100, Pool::new(0));
        let large = credits.try_take(1000);
        assert!(large.is_some());
        assert!(credits.try_take(1).is_none());
        drop(large);
        credits.wait_until_all_returned();
    }

    #[test]
    fn greedy_connections_leave_something_to_others_and_each_its_own() {
        let pool = Pool::new(12 << 20);
        let connection = || Credits::new(100, 64 << 20, Arc::clone(&pool));
        let fill = |credits: &Arc<Credits>| {
            std::iter::from_fn(|| credits.try_take(1 << 20)).collect::<Vec<_>>()
        };
        let (first, second, third) = (connection(), connection(), connection());
        let held = fill(&first);
        assert_eq!(held.len(), 1 + 6, "its own, and half of the pool");
        let also_held = fill(&second);
        assert_eq!(also_held.len(), 1 + 3, "half of what is left");
        assert!(third.try_take(2 << 20).is_some(), "room for one that comes");
        assert!(third.try_take(20 << 20).is_none());
        assert!(
            third.take(20 << 20, &|| true).is_none(),
            "a cut ends the wait"
        );
        drop(held);
        drop(also_held);
        assert_eq!(*lock(&pool.used), 0, "all came back");
        assert!(
            third.try_take(20 << 20).is_some(),
            "larger than the pool, alone"
        );
        assert_eq!(*lock(&pool.used), 0);
    }
}
