//! The commit protocol: how the memory of a running VM and the disks at the gateway move from one consistent state to
//! the next, and how a standby goes on from the last of them.
//!
//! Two pure state machines decide everything: [`commit`] for the source, [`standby`] for the standby. They know no
//! clock, no socket and no QEMU. The loops carry out what they say:
//!
//! ```text
//!            epochgate protect                                    epochgate standby
//!              source_loop ──────▶ commit                           standby_loop ──────▶ standby
//!              │    │    └───────▶ link ═══ checkpoint channel ═══▶ │     │
//!              │    └────────────▶ gateway_task (COMMIT 2)          │     └──▶ the gateway (takeover)
//!              └─────────────────▶ vm_task (stop, seal, save, cont) └────────▶ RAM image, standby QEMU
//! ```
//!
//! This crate uses the client side of `nbd-server` and `qemu-glue`; how NBD and QMP look on the wire it does not know.

pub mod address;
pub mod channel_io;
pub mod checkpoint;
pub mod checkpoint_channel;
mod clone;
pub mod cold_start;
pub mod command;
pub mod commit;
pub mod config;
pub mod disks;
mod ending;
pub mod failpoints;
mod gateway_task;
pub mod handshake;
mod leftovers;
mod link;
pub mod memory_history;
pub mod packing;
mod protect;
mod pulse;
pub mod report;
mod rhythm;
pub mod saved_state;
mod source_loop;
pub mod standby;
pub mod standby_loop;
mod taken_over;
mod vm_task;

pub use clone::{CloneError, CloneOf, run_clone};
pub use config::{ProtectConfig, StandbyConfig};
pub use ending::Ending;
pub use protect::{ProtectError, protect};
pub use standby_loop::serve_standby;
