//! Random numbers that can be had again: the seed is printed, and `EPOCHGATE_SEED` sets it.

use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

/// A generator (splitmix64): fast, and good enough to choose what a test does.
#[derive(Debug, Clone)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// From `EPOCHGATE_SEED`, else from the clock. The seed is on stderr, which the runner shows when the test fails.
    pub fn new(what: &str) -> Self {
        let seed = match std::env::var("EPOCHGATE_SEED") {
            Ok(text) => text.parse().expect("EPOCHGATE_SEED is a number"),
            Err(_) => SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |now| now.as_secs() ^ u64::from(now.subsec_nanos())),
        };
        eprintln!("{what}: EPOCHGATE_SEED={seed} does the same again");
        Self::from_seed(seed)
    }

    /// From a seed.
    pub fn from_seed(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// Another generator, for a thread say, that depends on this one's seed and on `index` only.
    pub fn fork(&self, index: u64) -> Self {
        let mut other = Self::from_seed(self.seed ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        other.seed = other.next();
        Self::from_seed(other.seed)
    }

    /// 64 random bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator without end would be no easier to use"
    )]
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number in a range that is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n) == 0
    }

    /// A random byte that is not zero, so that data and holes differ.
    pub fn byte(&mut self) -> u8 {
        u8::try_from(self.within(1..256)).expect("it is below 256")
    }

    /// So many bytes that no two places share.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
