//! Fuzz target; what it does and checks is in `src/negotiation.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| nbd_server_fuzz::negotiation::run(data));
