//! When the next checkpoint is due: pure arithmetic over instants that it is given. Knows no VM and no gate.

use std::time::{Duration, Instant};

use qemu_glue::Backlog;

use crate::config::Rhythm;

/// The rhythm of one VM.
#[derive(Debug, Clone)]
pub(crate) struct Beat {
    rhythm: Rhythm,
    /// The longest distance of two checkpoints.
    interval: Duration,
    /// The shortest, whoever waits.
    floor: Duration,
    last: Instant,
    backlog: Backlog,
}

impl Beat {
    /// Checkpoints at least every `interval`; on demand no faster than every `floor`.
    pub(crate) fn new(rhythm: Rhythm, interval: Duration, floor: Duration, now: Instant) -> Self {
        Self {
            rhythm,
            interval,
            floor: floor.min(interval),
            last: now,
            backlog: Backlog::Empty,
        }
    }

    /// What waits in the output gate has changed.
    pub(crate) fn backlog(&mut self, backlog: Backlog) {
        self.backlog = backlog;
    }

    /// A checkpoint was due and is under way, or could not be begun.
    pub(crate) fn began(&mut self, now: Instant) {
        self.last = now;
    }

    /// When the next one is due; in the past if it is late.
    pub(crate) fn due(&self) -> Instant {
        let demanded = match self.backlog {
            Backlog::Empty => false,
            Backlog::Waiting => self.rhythm == Rhythm::Demand,
            // The alternative is to drop packets.
            Backlog::Pressing => true,
        };
        self.last + if demanded { self.floor } else { self.interval }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_fixed_rhythm_is_hurried_only_by_a_gate_that_fills_up() {
        let start = Instant::now();
        let mut beat = Beat::new(Rhythm::Fixed, 25 * MS, 5 * MS, start);
        assert_eq!(beat.due(), start + 25 * MS);
        beat.backlog(Backlog::Waiting);
        assert_eq!(beat.due(), start + 25 * MS);
        beat.backlog(Backlog::Pressing);
        assert_eq!(beat.due(), start + 5 * MS);
        beat.began(start + 7 * MS);
        assert_eq!(beat.due(), start + 12 * MS);
    }

    #[test]
    fn on_demand_a_waiting_packet_is_enough() {
        let start = Instant::now();
        let mut beat = Beat::new(Rhythm::Demand, 1000 * MS, 5 * MS, start);
        assert_eq!(beat.due(), start + 1000 * MS);
        beat.backlog(Backlog::Waiting);
        assert_eq!(beat.due(), start + 5 * MS);
        beat.backlog(Backlog::Empty);
        beat.began(start + 5 * MS);
        assert_eq!(beat.due(), start + 1005 * MS);
    }

    #[test]
    fn the_floor_is_never_above_the_interval() {
        let start = Instant::now();
        let mut beat = Beat::new(Rhythm::Demand, 2 * MS, 5 * MS, start);
        beat.backlog(Backlog::Waiting);
        assert_eq!(beat.due(), start + 2 * MS);
    }
}
