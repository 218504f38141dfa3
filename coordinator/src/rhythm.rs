//! When the next checkpoint is due: pure arithmetic over instants that it is given. Knows no VM and no gate.

use std::time::{Duration, Instant};

use qemu_glue::Backlog;

use crate::config::{ProtectionPolicy, Rhythm};

/// The rhythm of one VM.
#[derive(Debug, Clone)]
pub(crate) struct Beat {
    rhythm: Rhythm,
    /// The longest distance of two checkpoints.
    interval: Duration,
    /// The shortest, whoever waits.
    floor: Duration,
    /// The share of time, in percent, that an adaptive rhythm lets the guest stand still.
    pause_budget: u32,
    /// How long it stood still lately: a mean in which the last eight checkpoints weigh most.
    pause: Duration,
    last: Instant,
    backlog: Backlog,
}

impl Beat {
    /// Checkpoints as `policy` has them, the first one an interval from `now`.
    pub(crate) fn new(policy: &ProtectionPolicy, now: Instant) -> Self {
        let interval = Duration::from_millis(policy.interval_ms);
        Self {
            rhythm: policy.rhythm,
            interval,
            floor: Duration::from_millis(policy.min_interval_ms).min(interval),
            pause_budget: policy.pause_budget_percent,
            pause: Duration::ZERO,
            last: now,
            backlog: Backlog::Empty,
        }
    }

    /// The guest stood still for so long.
    pub(crate) fn paused(&mut self, pause: Duration) {
        self.pause = match self.pause {
            Duration::ZERO => pause,
            mean => (mean * 7 + pause) / 8,
        };
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
        let distance = match (self.backlog, self.rhythm) {
            // The alternative is to drop packets.
            (Backlog::Pressing, _) | (Backlog::Waiting, Rhythm::Demand) => self.floor,
            (Backlog::Waiting, Rhythm::Adaptive) => self.affordable(),
            (Backlog::Waiting, Rhythm::Fixed) | (Backlog::Empty, _) => self.interval,
        };
        self.last + distance
    }

    /// The distance at which pauses as long as the last ones take the share of time that they may take.
    fn affordable(&self) -> Duration {
        let distance = self.pause * 100 / self.pause_budget.max(1);
        distance.clamp(self.floor, self.interval)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn beat(rhythm: Rhythm, interval_ms: u64, min_interval_ms: u64, now: Instant) -> Beat {
        let policy = ProtectionPolicy {
            rhythm,
            interval_ms,
            min_interval_ms,
            pause_budget_percent: 20,
            ..ProtectionPolicy::none()
        };
        Beat::new(&policy, now)
    }

    #[test]
    fn a_fixed_rhythm_is_hurried_only_by_a_gate_that_fills_up() {
        let start = Instant::now();
        let mut beat = beat(Rhythm::Fixed, 25, 5, start);
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
        let mut beat = beat(Rhythm::Demand, 1000, 5, start);
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
        let mut beat = beat(Rhythm::Demand, 2, 5, start);
        beat.backlog(Backlog::Waiting);
        assert_eq!(beat.due(), start + 2 * MS);
    }

    #[test]
    fn an_adaptive_rhythm_keeps_to_the_budget_of_pauses() {
        let start = Instant::now();
        let mut beat = beat(Rhythm::Adaptive, 100, 5, start);
        beat.paused(4 * MS);
        // Nobody waits: nobody gains.
        assert_eq!(beat.due(), start + 100 * MS);
        beat.backlog(Backlog::Waiting);
        assert_eq!(beat.due(), start + 20 * MS);
        for _ in 0..100 {
            beat.paused(MS / 2);
        }
        assert_eq!(beat.due(), start + 5 * MS, "never below the floor");
        for _ in 0..100 {
            beat.paused(500 * MS);
        }
        assert_eq!(beat.due(), start + 100 * MS, "never above the interval");
        beat.backlog(Backlog::Pressing);
        assert_eq!(beat.due(), start + 5 * MS);
    }
}
