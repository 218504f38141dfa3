//! Requests and replies after the handshake (NBD protocol, "Transmission phase"), without I/O: bytes to requests, the rules that every
//! request is held to before an export sees it, and replies to bytes. It knows no socket and no export but its
//! [`crate::export::ExportInfo`].

mod fragments;
mod reply;
mod request;
mod rules;
mod status;

pub use fragments::{Fragment, MAX_FRAGMENTS, MIN_SPARSE_READ, fragments};
pub use request::{Request, TransmissionError};
pub use rules::{Operation, Rules};
pub use status::{StatusExtent, fit};

#[cfg(test)]
mod tests;
