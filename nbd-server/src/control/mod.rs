//! The control API of a gateway: what a source, a standby and `epochgate status` say to it, over HTTP/1.1 and JSON on
//! a unix socket that only its owner can open.
//!
//! [`api`] holds the types that both sides share, [`client`] is the caller's side (the coordinator uses it while the
//! guest is paused) and [`server`] the gateway's side. Nothing here decides who may do what: that is
//! [`crate::group::barriers`].

pub mod api;
pub mod client;
mod clones;
mod exports;
mod group_status;
mod history;
pub mod server;
