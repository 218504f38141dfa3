//! What a guest has done, as far as the protocol can tell: a list of steps, each marked with the run of the guest that
//! made it. Two histories agree if one is the beginning of the other. Knows nothing of the protocol.

use std::fmt;

/// Bits for the run of one step.
const BITS: u32 = 3;
/// Most runs of a guest: one, and one for each takeover or cold start.
pub const MAX_RUNS: u8 = 1 << BITS;
/// Most steps of a guest, over all its runs.
pub const MAX_STEPS: u8 = 10;

/// The steps of a guest, oldest first. A disk that a guest has written has its history, and so has its memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct History {
    steps: u8,
    runs: u32,
}

impl History {
    /// With one more step, made by the run number `run` (below [`MAX_RUNS`]). At [`MAX_STEPS`] it stays as it is.
    #[must_use]
    pub fn then(self, run: u8) -> Self {
        if self.steps >= MAX_STEPS {
            return self;
        }
        let run = u32::from(run % MAX_RUNS) << (BITS * u32::from(self.steps));
        Self {
            steps: self.steps + 1,
            runs: self.runs | run,
        }
    }

    /// Whether `later` began like this.
    pub fn begins(self, later: Self) -> bool {
        let mask = (1_u32 << (BITS * u32::from(self.steps))) - 1;
        self.steps <= later.steps && later.runs & mask == self.runs
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = (0..u32::from(self.steps))
            .map(|step| (self.runs >> (BITS * step)) % u32::from(MAX_RUNS))
            .map(|run| run.to_string());
        write!(f, "<{}>", runs.collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_begins_itself_and_what_follows_and_no_other_branch() {
        let start = History::default().then(0).then(0);
        let (one, other) = (start.then(0), start.then(1));
        assert!(start.begins(start) && start.begins(one) && start.begins(other));
        assert!(!one.begins(start) && !one.begins(other) && !other.begins(one));
        assert_eq!(format!("{other:?}"), "<001>");
    }

    #[test]
    fn the_longest_history_still_compares() {
        let full = (0..MAX_STEPS).fold(History::default(), |history, _| history.then(MAX_RUNS - 1));
        assert!(full.begins(full));
        assert!(History::default().begins(full));
    }
}
