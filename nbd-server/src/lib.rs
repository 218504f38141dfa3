//! The storage gateway's NBD server: the protocol, its transports, the exports behind it, and the groups of disks whose
//! writes are held in epochs.
//!
//! The NBD half reads from the bottom up: [`protocol`] holds the numbers of the wire, [`agreed`] what a handshake settles,
//! [`negotiation`] and [`transmission`] are state machines without I/O, [`connection`] drives one socket with them, [`server`]
//! listens. What is served is behind the traits in [`export`]; this half knows neither epochs nor groups.

pub mod access;
pub mod agreed;
mod attachments;
pub mod connection;
pub mod control;
pub mod export;
pub mod failpoint;
pub mod gateway;
pub mod group;
mod image_file;
pub mod limits;
pub mod metrics;
pub mod negotiation;
mod page_cache;
pub mod policy;
pub mod protocol;
pub mod rates;
pub mod raw_export;
pub mod served;
pub mod server;
pub mod storage;
pub mod storage_check;
pub mod tls;
pub mod transmission;

pub use epoch_log::{Epoch, Generation};
pub use gateway::{ExportConfig, Gateway, GatewayConfig, GatewayError};
