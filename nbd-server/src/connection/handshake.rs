//! The handshake of one connection: feeds [`Negotiation`] from the socket, asks the directory, and keeps the time limit.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::receive_buffer::ReceiveBuffer;
use super::socket::Socket;
use super::throttle::Throttle;
use super::{Admit, ConnectionError, Context, Standing};
use crate::access::{Client, Guard, Peer};
use crate::export::{Cutter, Export, Since};
use crate::negotiation::{Negotiation, StartTls, Step};
use crate::policy::Policy;
use crate::transmission::Rules;

/// Answers are sent when they have grown to this, though more options are there.
const MAX_ANSWERS: usize = 64 << 10;

/// What a handshake has led to.
pub(super) struct Attachment {
    pub export: Arc<dyn Export>,
    pub rules: Rules,
    /// The points in time of the metadata contexts that were selected with one, by their slots.
    pub points: Arc<[Arc<dyn Since>]>,
    /// The pace that the export is held to, if it is.
    pub throttle: Option<Arc<Throttle>>,
}

#[derive(Clone, Copy)]
struct Deadline {
    start: Instant,
    limit: Duration,
}

/// Negotiates until the client has attached, or has left (`None`).
pub(super) fn negotiate(
    socket: &Arc<Socket>,
    peer: Peer,
    input: &mut ReceiveBuffer,
    context: &Context,
    standing: &Standing,
    admit: &Admit<'_>,
) -> Result<Option<Attachment>, ConnectionError> {
    let deadline = Deadline {
        start: Instant::now(),
        limit: context.limits.handshake_timeout,
    };
    let policy = context.policy();
    let mut client = Client {
        peer,
        certificate: None,
    };
    let mut out = Vec::new();
    // What the last selection has found, kept until it counts or another takes its place.
    let mut points: Vec<Arc<dyn Since>> = Vec::new();
    let mut negotiation = Negotiation::start(offer(&policy, peer), &mut out);
    loop {
        let guard = Guard {
            directory: context.directory.as_ref(),
            rules: &policy.access,
            client: &client,
        };
        if context.stopping.load(Ordering::Acquire) {
            negotiation.stop();
        }
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
            Ok(Step::List) => negotiation.answer_list(&guard.list(), &mut out),
            Ok(Step::Info(name)) => {
                let info = guard.describe(&name);
                negotiation.answer_info(info.as_ref(), &mut out);
            }
            Ok(Step::Contexts {
                export,
                queries,
                select: true,
            }) => {
                points.clear();
                let found = guard.changed_contexts(&export, &queries, &cutter(socket));
                let found = found.map(|found| {
                    let (names, since) = found.into_iter().map(|it| (it.name, it.since)).unzip();
                    points = since;
                    names
                });
                let names: Result<&Vec<String>, _> = found.as_ref();
                negotiation.answer_contexts(names.map(Vec::as_slice), &mut out);
            }
            Ok(Step::Contexts {
                export, queries, ..
            }) => {
                let names = guard.list_contexts(&export, &queries);
                negotiation.answer_contexts(names.as_deref(), &mut out);
            }
            Ok(Step::Attach(name)) => {
                match admit(&client).and_then(|()| guard.open(&name, cutter(socket))) {
                    Ok((export, info)) => {
                        let attached = negotiation.answer_attach(Ok(&info), &mut out);
                        if attached {
                            standing.admitted();
                        }
                        send(socket, &mut out, deadline)?;
                        if attached {
                            socket
                                .set_time_limit(None)
                                .map_err(ConnectionError::Socket)?;
                            let agreed = negotiation.agreed();
                            // Those of a selection for another export let their points go.
                            points.truncate(agreed.contexts.changed());
                            let rules = Rules::new(info, agreed);
                            let throttle = policy.rates.throttle(&context.directory.names(&name));
                            return Ok(Some(Attachment {
                                export,
                                rules,
                                points: points.into(),
                                throttle,
                            }));
                        }
                    }
                    Err(refused) => {
                        tracing::debug!(export = %name, %client, reason = %refused, "an attachment is refused");
                        negotiation.answer_attach(Err(&refused), &mut out);
                    }
                }
            }
            Ok(Step::StartTls) => {
                send(socket, &mut out, deadline)?;
                start_tls(socket, &policy, deadline)?;
                client.certificate = socket.certificate();
            }
            Ok(Step::Abort) => {
                send(socket, &mut out, deadline)?;
                return Ok(None);
            }
        }
        // Many options in one piece may have long answers.
        if out.len() >= MAX_ANSWERS {
            send(socket, &mut out, deadline)?;
        }
        if negotiation.ended() {
            send(socket, &mut out, deadline)?;
            return Ok(None);
        }
    }
}

/// What this client may or must do about TLS.
fn offer(policy: &Policy, peer: Peer) -> StartTls {
    let unix = matches!(peer, Peer::Unix { .. });
    match &policy.tls {
        None => StartTls::Unavailable,
        Some(tls) if tls.required(unix) => StartTls::Required,
        Some(_) => StartTls::Offered,
    }
}

fn start_tls(socket: &Socket, policy: &Policy, deadline: Deadline) -> Result<(), ConnectionError> {
    // It was offered, so it is there.
    let Some(tls) = &policy.tls else {
        return Ok(());
    };
    let connection = tls.connection().map_err(ConnectionError::StartTls)?;
    socket.start_tls(connection);
    loop {
        limit(socket, deadline)?;
        match socket.shake() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(ConnectionError::HandshakeTimeout);
            }
            Err(error) => return Err(ConnectionError::TlsHandshake(error)),
        }
    }
}

/// What ends this connection.
fn cutter(socket: &Arc<Socket>) -> Cutter {
    // The directory may keep the cutter for long: it must not keep the socket.
    let on_socket = |act: fn(&Socket)| {
        let weak = Arc::downgrade(socket);
        move || {
            if let Some(socket) = weak.upgrade() {
                act(&socket);
            }
        }
    };
    Cutter::new(on_socket(Socket::cut), on_socket(Socket::stop_receiving))
}

fn send(socket: &Socket, out: &mut Vec<u8>, deadline: Deadline) -> Result<(), ConnectionError> {
    if !out.is_empty() {
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            // Each time anew: a client that takes byte by byte never lets a single send time out.
            limit(socket, deadline)?;
            let sent = socket.send(&[IoSlice::new(rest)], true);
            rest = rest
                .get(sent.map_err(handshake_error)?..)
                .unwrap_or_default();
        }
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
