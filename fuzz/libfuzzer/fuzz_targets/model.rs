//! Fuzz target; what it does and checks is in `src/model.rs` of the package above.
#![no_main]

use fuzz_targets::{bounds, model};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bounds::within(model::run, data));
