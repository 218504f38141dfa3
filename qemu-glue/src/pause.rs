//! The measured parts of a pause and of a takeover, each a named field. Units are microseconds everywhere.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The parts of one checkpoint's pause, in microseconds. `scan` and `copy` run beside `stop` and `device_state`, so that `total`
/// is less than the sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseParts {
    /// From sending `stop` to QEMU's answer: the guest's I/O is drained, the cut is made.
    pub stop: u64,
    /// Finding the dirty pages, all scans together.
    pub scan: u64,
    /// Copying them out of the guest's RAM.
    pub copy: u64,
    /// From the answer to `stop` to the last byte of the device state.
    pub device_state: u64,
    /// From sending `cont` to its answer.
    pub resume: u64,
    /// From sending `stop` to the answer to `cont`: what the guest feels.
    pub total: u64,
}

/// The parts of a standby's start, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeParts {
    /// From the first byte of device state sent to QEMU having loaded it.
    pub load: u64,
    /// From sending `cont` to its answer.
    pub resume: u64,
    /// All of it.
    pub total: u64,
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
