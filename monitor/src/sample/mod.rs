//! Samples: the values of all signals at one instant, and where each comes from.
//!
//! One file per source: `process` (`/proc` of QEMU), `qemu` (the QMP connection, run state and events), `block`, `kvm`, `gateway`, `dirty`,
//! `network` (taps), `protected` (the process that protects the VM, with its output gate), `host`. Each remembers the counters of the last
//! sample, and gives what they have grown by. A counter that went back, a process or thread that is another one, a source that did not
//! answer: the values of that interval are missing, and the next one counts anew. `sampler` puts all together.

mod block;
mod dirty;
mod gateway;
mod growth;
mod host;
mod kvm;
mod network;
mod proc_text;
mod process;
mod protected;
mod qemu;
mod sampler;
mod values;

pub use gateway::GatewayGroup;
pub use sampler::{Place, Sampler, WatchError, Watched};
pub use values::{Sample, Values};
