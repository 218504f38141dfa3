//! Drives one NBD connection: the handshake, then batches of requests, on a thread of its own.
//!
//! All requests in the receive buffer are one batch. What needs no waiting is answered in place, and the answers of a batch leave in one
//! system call; what would block goes to the shared workers, whose answers overtake each other. This module and those below it hold
//! all of the I/O of a connection; what the bytes mean is said by [`crate::negotiation`] and [`crate::transmission`].

mod answers;
mod batch;
mod changed;
mod credit;
mod handshake;
mod outbox;
mod payload;
mod polling;
mod receive_buffer;
mod session;
mod socket;
mod standing;
mod throttle;
mod tls;
mod workers;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, PoisonError, RwLock};

use crate::access::{Client, Peer};
use crate::export::{ExportDirectory, OpenRefused};
use crate::limits::Limits;
use crate::negotiation::NegotiationError;
use crate::policy::Policy;
use crate::transmission::TransmissionError;

pub(crate) use credit::Pool;
pub(crate) use polling::PollSlots;
pub(crate) use socket::Socket;
pub(crate) use standing::Standing;
pub(crate) use throttle::Throttle;
pub(crate) use workers::Workers;

/// What all connections of a server share.
#[derive(Clone)]
pub(crate) struct Context {
    pub directory: Arc<dyn ExportDirectory>,
    pub limits: Arc<Limits>,
    /// Replaced as a whole; a connection keeps the one that it began with.
    pub policy: Arc<RwLock<Arc<Policy>>>,
    pub workers: Arc<Workers>,
    pub poll_slots: Arc<PollSlots>,
    /// Bytes under way, of all connections together.
    pub pool: Arc<Pool>,
    /// The server stops: what is under way is answered, what comes until then is refused.
    pub stopping: Arc<AtomicBool>,
}

impl Context {
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.read().unwrap_or_else(PoisonError::into_inner))
    }
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
    /// TLS can't start on this side.
    #[error("TLS can't be started")]
    StartTls(#[source] rustls::Error),
    /// The TLS handshake failed: the client's certificate was refused, say.
    #[error("the TLS handshake failed")]
    TlsHandshake(#[source] io::Error),
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

/// Asked before a client attaches, whether it has too many connections.
pub(crate) type Admit<'a> = dyn Fn(&Client) -> Result<(), OpenRefused> + 'a;

/// Serves one connection to its end.
pub(crate) fn serve(
    socket: Arc<Socket>,
    peer: Peer,
    context: &Context,
    standing: &Standing,
    admit: &Admit<'_>,
) -> Result<(), ConnectionError> {
    let _cut = CutOnDrop(Arc::clone(&socket));
    let mut input = receive_buffer::ReceiveBuffer::new();
    let Some(attachment) =
        handshake::negotiate(&socket, peer, &mut input, context, standing, admit)?
    else {
        socket.goodbye();
        return Ok(());
    };
    let session = session::Session::new(Arc::clone(&socket), context, attachment);
    let (credits, reconnects) = session.standing();
    standing.attached(credits, reconnects);
    session.run(&mut input)?;
    socket.goodbye();
    Ok(())
}
