//! A small site on this machine for the demo and the benches: a gateway, a standby and a source as processes of their
//! own, started from this very binary with configuration files as a user would write them, and a guest whose witness
//! judges what it finds.
//!
//! It only sees what any user could see: the `--json` events of the processes and the guest's serial line.

pub(crate) mod board;
pub(crate) mod chain;
pub(crate) mod clock;
pub(crate) mod failover;
pub(crate) mod lan;
pub(crate) mod layout;
pub(crate) mod namespaces;
pub(crate) mod nas;
pub(crate) mod network;
pub(crate) mod process;
pub(crate) mod qmp;
mod relay;
pub(crate) mod saved;
pub(crate) mod seen;
pub(crate) mod site;
pub(crate) mod small_disk;
pub(crate) mod timeline;
pub(crate) mod witness;

pub(crate) use site::{Site, Who};
