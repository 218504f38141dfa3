//! Fuzz target; what it does and checks is in `src/session.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| nbd_server_fuzz::session::run(data));
