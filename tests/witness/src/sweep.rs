//! Sweeps: full sequential verifications of all blocks of all disks, done by all workers together, beside their
//! random work. A sweep begins for every worker only when every worker has ended the one before, so that "one
//! complete sweep begun after this moment" has a meaning.

/// Where all workers are in the sweeps. Shared behind a lock.
#[derive(Debug)]
pub struct Sweeps {
    done: Vec<u64>,
    started: f64,
}

impl Sweeps {
    /// For `workers` workers; the first sweep begins at uptime 0.
    pub fn new(workers: usize) -> Self {
        Self {
            done: vec![0; workers],
            started: 0.0,
        }
    }

    /// Completed sweeps.
    pub fn passes(&self) -> u64 {
        self.done.iter().copied().min().unwrap_or(0)
    }

    /// Uptime in seconds before which no block was read for the sweep that is in progress.
    pub fn started(&self) -> f64 {
        self.started
    }

    /// Whether `worker` may go on to its share of the sweep in progress, or must wait for others.
    pub fn may_sweep(&self, worker: usize) -> bool {
        self.done.get(worker).copied() == Some(self.passes())
    }

    /// `worker` has ended its share of the sweep, at uptime `now`.
    pub fn end_share(&mut self, worker: usize, now: f64) {
        let before = self.passes();
        if let Some(done) = self.done.get_mut(worker) {
            *done += 1;
        }
        if self.passes() > before {
            self.started = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_starts_when_all_have_ended_the_last() {
        let mut sweeps = Sweeps::new(2);
        sweeps.end_share(0, 1.0);
        assert!(!sweeps.may_sweep(0) && sweeps.may_sweep(1));
        assert_eq!((sweeps.passes(), sweeps.started()), (0, 0.0));
        sweeps.end_share(1, 2.0);
        assert!(sweeps.may_sweep(0) && sweeps.may_sweep(1));
        assert_eq!((sweeps.passes(), sweeps.started()), (1, 2.0));
    }
}
