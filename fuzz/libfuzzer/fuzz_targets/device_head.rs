//! Fuzz target; what it does and checks is in `src/device_head.rs` of the package above.
#![no_main]

use fuzz_targets::{bounds, device_head};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bounds::within(device_head::run, data));
