//! What the end-to-end tests share: they start the real binary with configuration files, as a user would, and see only
//! what a user can see: events, exit codes, messages, `epochgate status`, and the guest's serial line.
//!
//! May not know the insides of any crate: no crate of the project is a dependency. Whatever is needed of a format
//! (frames, QMP, the control API) is written here a second time, from its documentation.
//!
//! Settings: `EPOCHGATE_BIN` (the binary to test), `EPOCHGATE_GUEST` (folder of the guest), `EPOCHGATE_QEMU`,
//! `EPOCHGATE_TEST_ALL=1` (all cases of tests that otherwise make a choice).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a harness of tests fails by panicking"
)]

pub mod below;
pub mod busy_group;
pub mod client;
pub mod command;
pub mod control;
mod die_with_parent;
pub mod disk;
pub mod epochs;
pub mod frames;
pub mod history;
pub mod lab_guest;
pub mod ledger;
pub mod nas;
pub mod nbd;
pub mod network;
pub mod object_server;
pub mod paths;
pub mod process;
pub mod qmp;
pub mod random;
mod relay;
pub mod resources;
pub mod serial;
pub mod site;
pub mod snapshot;
pub mod waiting;
