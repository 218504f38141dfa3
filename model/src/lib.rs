//! A model checker for the commit protocol. It drives the state machines that ship: `coordinator::commit` and
//! `coordinator::standby`, and the gateway's `group::barriers` with the log's rules of state. What is around them is
//! modelled: the network, crashes, what is durable, the guest, the outside world.
//!
//! [`Protocol`] is what stateright explores, [`World`] one state of everything, [`rules`] what must hold in all of them.
//! [`Mutation`]s make the protocol wrong on purpose: the checker has to find each of them.
//!
//! Nothing here is part of the product; docs/testing.md says what the checker covers and what it does not.

pub mod bounds;
pub mod channel;
pub mod check;
mod faults;
pub mod gateway;
pub mod history;
pub mod host;
pub mod mutation;
mod protocol;
pub mod remains;
pub mod rules;
pub mod scenarios;
mod source_side;
mod standby_side;
pub mod world;

pub use bounds::{Bounds, Fault};
pub use mutation::Mutation;
pub use protocol::Step;
pub use rules::Rule;
pub use world::{Protocol, World};
