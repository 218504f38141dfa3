//! Fuzz target; what it does and checks is in `src/backup.rs` of the package above.
#![no_main]

use fuzz_targets::{backup, bounds};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bounds::within(backup::run, data));
