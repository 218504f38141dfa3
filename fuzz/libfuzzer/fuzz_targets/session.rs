//! Fuzz target; what it does and checks is in `src/session.rs` of the package above.
#![no_main]

use fuzz_targets::{bounds, session};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| bounds::within(session::run, data));
