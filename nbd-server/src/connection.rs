//! Drives one NBD connection: the handshake, then batches of requests, on a thread of its own.
//!
//! All requests in the receive buffer are one batch. What needs no waiting is answered in place, and the answers of a batch leave in one
//! system call; what would block goes to the shared workers, whose answers overtake each other. This module and those below it hold
//! all of the I/O of a connection; what the bytes mean is said by [`crate::negotiation`] and [`crate::transmission`].

mod batch;
mod credit;
mod handshake;
mod outbox;
mod payload;
mod receive_buffer;
mod session;
mod socket;
mod workers;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::export::ExportDirectory;
use crate::limits::Limits;
use crate::negotiation::NegotiationError;
use crate::transmission::TransmissionError;

pub(crate) use socket::Socket;
pub(crate) use workers::Workers;

/// What all connections of a server share.
#[derive(Clone)]
pub(crate) struct Context {
    pub directory: Arc<dyn ExportDirectory>,
    pub limits: Arc<Limits>,
    pub workers: Arc<Workers>,
    /// The server stops: connections end after the batch they are at.
    pub stopping: Arc<AtomicBool>,
}

/// Why a connection ended other than by the client's goodbye.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The client did not end the handshake within its limit.
    #[error("the handshake took too long")]
    HandshakeTimeout,
    /// The handshake was malformed.
    #[error("the handshake failed")]
    Negotiation(#[from] NegotiationError),
    /// A request was malformed.
    #[error("the transmission failed")]
    Transmission(#[from] TransmissionError),
    /// The connection broke, or was closed without a goodbye in the midst of something.
    #[error("the connection broke")]
    Socket(#[source] io::Error),
}

/// Cuts the socket when the connection's thread is done with it, also when it panics.
struct CutOnDrop(Arc<Socket>);

impl Drop for CutOnDrop {
    fn drop(&mut self) {
        self.0.cut();
    }
}

/// Serves one connection to its end.
pub(crate) fn serve(socket: Arc<Socket>, context: &Context) -> Result<(), ConnectionError> {
    let _cut = CutOnDrop(Arc::clone(&socket));
    let mut input = receive_buffer::ReceiveBuffer::new();
    match handshake::negotiate(&socket, &mut input, context)? {
        Some(attachment) => session::Session::new(socket, context, attachment).run(&mut input),
        None => Ok(()),
    }
}
