//! Fuzz target; what it does and checks is in `src/packing.rs` of the package above.
#![no_main]

use fuzz_targets::{bounds, packing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bounds::within(packing::run, data));
