//! The handshake of one connection: feeds [`Negotiation`] from the socket, asks the directory, and keeps the time limit.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::receive_buffer::ReceiveBuffer;
use super::socket::Socket;
use super::{ConnectionError, Context};
use crate::export::{Cutter, Export, OpenRefused};
use crate::negotiation::{Negotiation, Step};
use crate::transmission::Rules;

/// What a handshake has led to.
pub(super) struct Attachment {
    pub export: Arc<dyn Export>,
    pub rules: Rules,
}

#[derive(Clone, Copy)]
struct Deadline {
    start: Instant,
    limit: Duration,
}

/// Negotiates until the client has attached, or has left (`None`).
pub(super) fn negotiate(
    socket: &Arc<Socket>,
    input: &mut ReceiveBuffer,
    context: &Context,
) -> Result<Option<Attachment>, ConnectionError> {
    let deadline = Deadline {
        start: Instant::now(),
        limit: context.limits.handshake_timeout,
    };
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(&mut out);
    loop {
        let mut bytes = input.filled();
        let before = bytes.len();
        let step = negotiation.advance(&mut bytes, &mut out);
        let consumed = before - bytes.len();
        input.consume(consumed);
        match step {
            Err(error) => {
                // Answers to what came before the fault are worth trying.
                let _ = send(socket, &mut out, deadline);
                return Err(error.into());
            }
            Ok(Step::NeedMore) => {
                send(socket, &mut out, deadline)?;
                limit(socket, deadline)?;
                match input.fill(socket) {
                    // A client that just looks whether somebody listens is no fault.
                    Ok(0) => return Ok(None),
                    Ok(_) => {}
                    Err(error) => return Err(handshake_error(error)),
                }
            }
            Ok(Step::List) => negotiation.answer_list(&context.directory.list(), &mut out),
            Ok(Step::Info(name)) => {
                let info = context.directory.describe(&name);
                negotiation.answer_info(info.as_ref(), &mut out);
            }
            Ok(Step::Attach(name)) => match attach(socket, context, &name) {
                Ok(export) => {
                    let info = export.info();
                    let attached = negotiation.answer_attach(Ok(&info), &mut out);
                    send(socket, &mut out, deadline)?;
                    if attached {
                        socket
                            .set_time_limit(None)
                            .map_err(ConnectionError::Socket)?;
                        let rules = Rules::new(info, negotiation.structured());
                        return Ok(Some(Attachment { export, rules }));
                    }
                }
                Err(refused) => {
                    tracing::debug!(export = %name, reason = %refused, "an attachment is refused");
                    negotiation.answer_attach(Err(&refused), &mut out);
                }
            },
            Ok(Step::Abort) => {
                send(socket, &mut out, deadline)?;
                return Ok(None);
            }
        }
        if negotiation.ended() {
            send(socket, &mut out, deadline)?;
            return Ok(None);
        }
    }
}

fn attach(
    socket: &Arc<Socket>,
    context: &Context,
    name: &str,
) -> Result<Arc<dyn Export>, OpenRefused> {
    // The directory may keep the cutter for long: it must not keep the socket.
    let weak = Arc::downgrade(socket);
    let cutter = Cutter::new(move || {
        if let Some(socket) = weak.upgrade() {
            socket.cut();
        }
    });
    context.directory.open(name, cutter)
}

fn send(socket: &Socket, out: &mut Vec<u8>, deadline: Deadline) -> Result<(), ConnectionError> {
    if !out.is_empty() {
        limit(socket, deadline)?;
        socket.send_all(out).map_err(handshake_error)?;
        out.clear();
    }
    Ok(())
}

fn limit(socket: &Socket, deadline: Deadline) -> Result<(), ConnectionError> {
    let left = deadline.limit.saturating_sub(deadline.start.elapsed());
    // The kernel counts in its ticks, and takes zero for "no limit".
    if left < Duration::from_millis(1) {
        return Err(ConnectionError::HandshakeTimeout);
    }
    socket
        .set_time_limit(Some(left))
        .map_err(ConnectionError::Socket)
}

fn handshake_error(error: io::Error) -> ConnectionError {
    if error.kind() == io::ErrorKind::WouldBlock {
        ConnectionError::HandshakeTimeout
    } else {
        ConnectionError::Socket(error)
    }
}
