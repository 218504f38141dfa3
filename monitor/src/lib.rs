//! Watches VMs from outside: samples what the host sees of them, and keeps recordings of it. Nothing runs in the guest.
//!
//! | module | |
//! |---|---|
//! | [`signals`] | the fixed list of what is measured |
//! | [`sample`] | one measurement of all signals, and where each comes from |
//! | [`recording`] | a file of samples with its labels: what data sets are made of |
//! | [`record`] | makes recordings of running VMs |
//! | [`features`] | what a classifier sees of a VM, made from samples |
//! | [`model`] | a trained model, its file, and what it says of a window |
//! | [`learn`] | makes models from recordings |
//! | [`evaluate`] | how well models judge what they have never seen |
//! | [`judge`] | from opinions on windows to verdicts on a VM |
//! | [`actions`] | what is done about a verdict, and what holds it back |
//! | [`watch`] | all of that for a VM that runs, from samples to actions |
//!
//! Uses qemu-glue for QMP and dirty pages and nbd-server's client for the gateway. Knows no commit protocol: of a VM that is protected it
//! reads what the protecting process tells in its status, as any other program could.

pub mod actions;
pub mod evaluate;
pub mod features;
pub mod judge;
pub mod learn;
pub mod model;
pub mod record;
pub mod recording;
pub mod sample;
pub mod signals;
pub mod watch;

pub use recording::{Header, Recording};
pub use sample::{Sample, Sampler, Values, Watched};
pub use signals::{SIGNALS_VERSION, Signal, Source};
