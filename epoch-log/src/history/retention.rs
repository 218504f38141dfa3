//! What is kept for how long: pure decisions. Knows no files.

/// From an age on, one point in so much time is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Points older than this, in milliseconds.
    pub older_than_ms: u64,
    /// One in so many milliseconds.
    pub one_in_ms: u64,
}

/// How much history is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// No longer than this, in milliseconds.
    pub age_ms: u64,
    /// In no more than so many bytes. What is saved last is kept, whatever this says.
    pub bytes: u64,
    /// And so that this much of the disk stays free, in bytes.
    pub min_free: u64,
    /// How it gets thinner with age: ages and distances rise from one to the next.
    pub tiers: Vec<Tier>,
}

/// The tier of runs that are there for the sake of pins alone.
pub const PINS_ONLY: u32 = u32::MAX;

impl Retention {
    /// Keeps everything.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            age_ms: u64::MAX,
            bytes: u64::MAX,
            min_free: 0,
            tiers: Vec::new(),
        }
    }

    /// How thin a run is that ended `age_ms` ago: 0 for whole.
    pub(super) fn tier_of(&self, age_ms: u64) -> u32 {
        if age_ms > self.age_ms {
            return PINS_ONLY;
        }
        let reached = self
            .tiers
            .iter()
            .filter(|tier| age_ms > tier.older_than_ms)
            .count();
        u32::try_from(reached).unwrap_or(PINS_ONLY)
    }

    /// The distance of points in a tier, in milliseconds; none: only pins.
    pub(super) fn distance(&self, tier: u32) -> Option<u64> {
        if tier == PINS_ONLY {
            return None;
        }
        let index = usize::try_from(tier).ok()?.checked_sub(1)?;
        self.tiers.get(index).map(|tier| tier.one_in_ms.max(1))
    }

    /// How long a run may grow before it is closed whatever its size, so that what ends with it can go: in milliseconds.
    pub(super) fn longest_run_ms(&self) -> u64 {
        let first = self
            .tiers
            .first()
            .map_or(u64::MAX, |tier| tier.older_than_ms);
        (self.age_ms.min(first) / 8).max(1000)
    }
}
