//! Plain values: a sample, and what is missing in it.

use std::fmt;

use crate::signals::{Signal, Source};

/// A value for each signal. A value is a finite number, or it is missing.
#[derive(Clone, Copy)]
pub struct Values(
    /// What is missing is NaN: half the room of options, and recordings have many of them.
    [f32; Signal::COUNT],
);

/// The values of one instant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Milliseconds since the recording (or the watch) began, by a clock that never jumps.
    pub at_ms: u64,
    /// Milliseconds since 1970, by the clock of the host when the recording began and `at_ms`.
    pub wall_ms: u64,
    /// The values.
    pub values: Values,
}

impl Values {
    /// All of them are missing.
    pub const MISSING: Values = Values([f32::NAN; Signal::COUNT]);

    /// The value; None if it is missing.
    pub fn get(&self, signal: Signal) -> Option<f32> {
        let value = self.0.get(signal.index()).copied();
        value.filter(|value| value.is_finite())
    }

    /// Sets it. What is not a finite number becomes missing.
    pub fn set(&mut self, signal: Signal, value: impl Into<Option<f32>>) {
        if let Some(slot) = self.0.get_mut(signal.index()) {
            let value = value.into().filter(|value| value.is_finite());
            *slot = value.unwrap_or(f32::NAN);
        }
    }

    /// Whether any signal of this source has a value.
    pub fn has(&self, source: Source) -> bool {
        self.iter()
            .any(|(signal, value)| signal.source() == source && value.is_some())
    }

    /// All signals with their values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Signal, Option<f32>)> + '_ {
        Signal::ALL
            .iter()
            .map(|signal| (*signal, self.get(*signal)))
    }
}

impl PartialEq for Values {
    /// What is missing in both is the same.
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Default for Values {
    fn default() -> Self {
        Self::MISSING
    }
}

impl fmt::Debug for Values {
    /// What is there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let there = self
            .iter()
            .filter_map(|(signal, value)| Some((signal.name(), value?)));
        f.debug_map().entries(there).finish()
    }
}
