//! Fuzz target; what it does and checks is in `src/transmission.rs` of the package above.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| fuzz_targets::transmission::run(data));
