//! What the fuzz targets do with their input, and what must be true then. The functions are here and not in the targets
//! (`libfuzzer/`), so that `tests/fuzz_inputs.rs` can run them on the seeds and on every input that once failed, without a fuzzer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "a panic is how a target says that something is wrong"
)]

pub mod backup;
pub mod bounds;
pub mod checkpoint;
pub mod configuration;
pub mod control;
pub mod device_head;
pub mod history;
pub mod log;
pub mod model;
pub mod negotiation;
pub mod packing;
pub mod recording;
pub mod replies;
pub mod session;
pub mod transmission;
