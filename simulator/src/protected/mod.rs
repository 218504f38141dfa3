//! A VM that is protected: source, standby, gateway and the network between them, with everything that can go wrong.

mod control;
mod disks;
mod faults;
mod gateway_side;
mod guest;
mod hosts;
mod ledger;
mod network;
mod queue;
mod source_guest;
mod source_link;
mod source_requests;
mod source_side;
mod standby_side;
mod world;

pub use world::run;
