//! Fuzz target; what it does and checks is in `src/session.rs` of the package above.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_targets::session::run_with_threads(data));
