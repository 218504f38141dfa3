//! What the fuzz targets do with their input, and what must be true then. The functions are here and not in the targets, so that
//! `nbd-server/tests/fuzz_inputs.rs` can run them on the seeds and on every input that once failed, without a fuzzer.

pub mod control;
pub mod negotiation;
pub mod replies;
pub mod session;
pub mod transmission;
