//! `[memory_history]` of a standby: where it keeps memory points, how often, and how many. Values only.

use std::path::PathBuf;

use epoch_log::history::Retention;
use nbd_server::group::history::{Size, TimeSpan};
use serde::Deserialize;

/// Shortest distance of two points, in milliseconds: each costs some syncs of the disk.
const SHORTEST: u64 = 100;

/// How a standby keeps the memory of its VM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryHistoryConfig {
    /// Directory of the memory history, for this VM alone. It holds guest memory: only its owner may read it.
    pub dir: PathBuf,
    /// Distance of two points, such as "10s".
    #[serde(default = "every")]
    pub every: TimeSpan,
    /// No point is kept for longer than this, such as "1d".
    #[serde(default = "age")]
    pub age: TimeSpan,
    /// What earlier points differ in takes no more space than this, such as "100GiB"; the newest one, in `ram.img`, comes on top.
    #[serde(default = "size")]
    pub size: Size,
    /// They give way when less than this is free where they lie.
    #[serde(default = "min_free")]
    pub min_free: Size,
}

impl MemoryHistoryConfig {
    /// The first thing that is wrong, in words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<(), String> {
        if self.every.0 < SHORTEST {
            return Err(format!(
                "memory_history.every is \"{}\", and \"{}\" is the shortest",
                self.every,
                TimeSpan(SHORTEST)
            ));
        }
        if self.age < self.every {
            return Err(format!(
                "memory_history.age is \"{}\", shorter than every = \"{}\": no point would stay",
                self.age, self.every
            ));
        }
        Ok(())
    }

    /// The same for the history itself: all points up to the age.
    pub(super) fn retention(&self) -> Retention {
        Retention {
            age_ms: self.age.0,
            bytes: self.size.0,
            min_free: self.min_free.0,
            tiers: Vec::new(),
        }
    }
}

fn every() -> TimeSpan {
    TimeSpan(10_000)
}

fn age() -> TimeSpan {
    TimeSpan(24 * 3_600_000)
}

fn size() -> Size {
    Size(100 << 30)
}

fn min_free() -> Size {
    Size(1 << 30)
}
