//! A connection to a server below that is made again when it breaks. Requests wait meanwhile, and are sent again. Many can be under way
//! at once. Knows nothing of what they mean; [`Wire`] is the protocol's part.
//!
//! A server that only is silent keeps its connection: what it has received it may still carry out, long after somebody else would have sent
//! the same and something newer on another connection. So a connection is given up when its end is seen, or when
//! the server answers on a fresh one and still says nothing on this.

mod health;
mod message;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::stream::Stream;
use health::Health;

pub(super) use message::{Answer, Message, Reply};

/// How often a silent connection is looked at.
const TICK: Duration = Duration::from_millis(500);
/// First and longest pause before a connection is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// What is particular to a protocol.
pub(super) trait Wire: fmt::Debug + Send + Sync + 'static {
    /// Connects and shakes hands. What fails with [`Condemned`] inside is not tried again.
    fn connect(&self) -> io::Result<Stream>;

    /// Reads the next reply. `expected` says how many bytes of data the request with this id asked for.
    fn receive(
        &self,
        from: &mut dyn Read,
        expected: &dyn Fn(u64) -> usize,
    ) -> io::Result<(u64, Reply)>;
}

/// There is no way back: somebody else has what this link was for.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(super) struct Condemned(pub String);

/// Where an answer is waited for.
#[derive(Debug, Default)]
struct Slot {
    answer: Mutex<Option<io::Result<Answer>>>,
    filled: Condvar,
}

impl Slot {
    fn fill(&self, answer: io::Result<Answer>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.filled.notify_all();
    }
}

/// A request that has no answer yet.
#[derive(Debug)]
struct Pending {
    message: Arc<Message>,
    slot: Arc<Slot>,
    /// Number of the connection that it was sent over last; 0: none.
    sent_on: u64,
    repeated: bool,
    begun: Instant,
}

/// The connection of the moment.
#[derive(Debug)]
struct Connection {
    number: u64,
    writer: Mutex<Stream>,
    /// Ends it while somebody writes.
    handle: Stream,
}

#[derive(Debug, Default)]
struct State {
    pending: BTreeMap<u64, Pending>,
    connection: Option<Arc<Connection>>,
    /// Number of the newest connection.
    number: u64,
    health: Health,
    /// Nothing is sent any more.
    condemned: Option<Condemned>,
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    /// Where it leads, for people.
    name: String,
    wire: Arc<dyn Wire>,
    /// How long a request may wait; none: for ever.
    patience: Option<Duration>,
    next: AtomicU32,
    state: Mutex<State>,
}

/// A link to a server. Dropping it ends the connection.
#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
}

/// A request on its way.
#[derive(Debug)]
pub(super) struct Ticket {
    id: u64,
    slot: Arc<Slot>,
}

impl Ticket {
    /// Waits for the answer, once.
    pub fn wait(&self) -> io::Result<Answer> {
        let answer = self
            .slot
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut answer = self
            .slot
            .filled
            .wait_while(answer, |answer| answer.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        answer
            .take()
            .unwrap_or_else(|| Err(io::Error::other("the answer was taken")))
    }

    /// Waits for the answer, but not longer than `limit`; none: there is none yet.
    pub fn wait_for(&self, limit: Duration) -> Option<io::Result<Answer>> {
        let answer = self
            .slot
            .answer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (mut answer, _) = self
            .slot
            .filled
            .wait_timeout_while(answer, limit, |answer| answer.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        answer.take()
    }
}

impl Link {
    /// Connects for the first time. A server that can't be reached now is an error at once.
    pub fn open(name: String, wire: Arc<dyn Wire>, patience: Option<Duration>) -> io::Result<Self> {
        let stream = wire.connect()?;
        let [a, b, c, d, ..] = *uuid::Uuid::new_v4().as_bytes();
        let shared = Arc::new(Shared {
            name,
            wire,
            patience,
            // A server may remember what another process has asked under a number.
            next: AtomicU32::new(u32::from_be_bytes([a, b, c, d])),
            state: Mutex::default(),
        });
        let kept = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("storage link".to_owned())
            .spawn(move || kept.run(stream))?;
        Ok(Self { shared })
    }

    /// Where it leads, for people.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// How long a request may wait; none: for ever.
    pub fn patience(&self) -> Option<Duration> {
        self.shared.patience
    }

    /// Takes a request down, without sending it: nothing blocks.
    pub fn register(&self, make: impl FnOnce(u64) -> Message) -> Ticket {
        let id = u64::from(self.shared.next.fetch_add(1, Ordering::Relaxed));
        let slot = Arc::<Slot>::default();
        let pending = Pending {
            message: Arc::new(make(id)),
            slot: Arc::clone(&slot),
            sent_on: 0,
            repeated: false,
            begun: Instant::now(),
        };
        let mut state = self.shared.lock();
        match &state.condemned {
            Some(condemned) => slot.fill(Err(io::Error::other(condemned.clone()))),
            None => drop(state.pending.insert(id, pending)),
        }
        Ticket { id, slot }
    }

    /// Sends what was taken down, if there is a connection; otherwise it goes over the next one. May wait for the server.
    pub fn send(&self, ticket: &Ticket) {
        let mut state = self.shared.lock();
        let Some(connection) = state.connection.clone() else {
            return;
        };
        let Some(pending) = state
            .pending
            .get_mut(&ticket.id)
            .filter(|pending| pending.sent_on != connection.number)
        else {
            return;
        };
        pending.sent_on = connection.number;
        let message = Arc::clone(&pending.message);
        drop(state);
        connection.send(&message);
    }

    /// Asks, and waits for the answer.
    pub fn call(&self, make: impl FnOnce(u64) -> Message) -> io::Result<Answer> {
        let ticket = self.register(make);
        self.send(&ticket);
        ticket.wait()
    }

    /// What is wrong now, for people.
    pub fn trouble(&self) -> Option<String> {
        let state = self.shared.lock();
        if let Some(condemned) = &state.condemned {
            return Some(format!("{}: {condemned}", self.shared.name));
        }
        state.health.said(&self.shared.name)
    }

    /// Notes what the server refuses though it should not; none: it works.
    pub fn note_refusal(&self, refusal: Option<&str>) {
        let name = &self.shared.name;
        self.shared.lock().health.note_refusal(name, refusal);
    }

    /// Sends nothing any more: somebody else has what this link was for.
    pub fn condemn(&self, reason: Condemned) {
        self.shared.condemn(reason);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        if let Some(connection) = state.connection.take() {
            connection.handle.end();
        }
    }
}

impl Connection {
    fn send(&self, message: &Message) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if message.send(&mut writer).is_err() {
            // A part may have been sent: nothing can follow. The reader notices.
            self.handle.end();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the link, from its first connection to its end.
    fn run(self: Arc<Self>, first: Stream) {
        let mut stream = Some(first);
        let mut pause = BACK_OFF.0;
        loop {
            let outcome = match stream.take() {
                Some(stream) => self.serve(stream, &mut pause),
                None => self.wire.connect().and_then(|s| self.serve(s, &mut pause)),
            };
            let mut state = self.lock();
            state.connection = None;
            if state.closed {
                let ended = std::mem::take(&mut state.pending);
                drop(state);
                for pending in ended.into_values() {
                    pending.slot.fill(Err(io::ErrorKind::NotConnected.into()));
                }
                return;
            }
            if let Err(error) = &outcome {
                let condemned = error.get_ref().and_then(|inner| inner.downcast_ref());
                if let Some(condemned) = condemned.cloned() {
                    drop(state);
                    self.condemn(condemned);
                    return;
                }
                state.health.lost(&self.name, error);
            }
            drop(state);
            self.tick(None);
            std::thread::sleep(pause);
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Serves one connection until it ends.
    fn serve(self: &Arc<Self>, stream: Stream, pause: &mut Duration) -> io::Result<()> {
        stream.settle(TICK)?;
        let writer = Mutex::new(stream.try_clone()?);
        let handle = stream.try_clone()?;
        let mut state = self.lock();
        if state.closed {
            return Ok(());
        }
        state.number += 1;
        let connection = Arc::new(Connection {
            number: state.number,
            writer,
            handle,
        });
        state.connection = Some(Arc::clone(&connection));
        state.health.connected(&self.name);
        let mut again = Vec::new();
        for pending in state.pending.values_mut() {
            pending.repeated |= pending.sent_on != 0;
            pending.sent_on = connection.number;
            again.push(Arc::clone(&pending.message));
        }
        drop(state);
        if !again.is_empty() {
            // Beside the reader: a server may take no request before somebody reads its replies.
            let connection = Arc::clone(&connection);
            std::thread::Builder::new()
                .name("storage resend".to_owned())
                .spawn(move || {
                    again.iter().for_each(|message| connection.send(message));
                })?;
        }
        let source = Patient {
            stream,
            shared: self,
            connection: &connection,
        };
        let mut source = BufReader::with_capacity(64 << 10, source);
        let served = loop {
            let expected = |id| {
                let state = self.lock();
                let pending = state.pending.get(&id);
                pending.map_or(0, |pending| pending.message.expected)
            };
            match self.wire.receive(&mut source, &expected) {
                Ok((id, reply)) => {
                    *pause = BACK_OFF.0;
                    self.complete(id, reply, connection.number);
                }
                Err(error) => break Err(error),
            }
        };
        connection.handle.end();
        served
    }

    fn complete(&self, id: u64, reply: Reply, connection: u64) {
        let mut state = self.lock();
        state.health.answered(&self.name);
        // One that was given up may be answered all the same.
        let Some(pending) = state.pending.remove(&id) else {
            return;
        };
        drop(state);
        pending.slot.fill(Ok(Answer {
            reply,
            connection,
            repeated: pending.repeated,
        }));
    }

    /// Looks after requests that wait, and after a connection that is silent.
    fn tick(self: &Arc<Self>, connection: Option<&Connection>) {
        let now = Instant::now();
        let mut state = self.lock();
        let mut expired = Vec::new();
        if let Some(patience) = self.patience {
            let over = |pending: &Pending| now.duration_since(pending.begun) >= patience;
            let ids: Vec<u64> = state
                .pending
                .iter()
                .filter(|(_, pending)| over(pending))
                .map(|(id, _)| *id)
                .collect();
            expired.extend(ids.iter().filter_map(|id| state.pending.remove(id)));
        }
        let oldest = state.pending.values().map(|pending| pending.begun).min();
        let verdict = state.health.look(&self.name, now, oldest);
        drop(state);
        if let Some(connection) = connection {
            if verdict.give_up || !expired.is_empty() {
                // Also whoever still writes to it must not wait longer.
                connection.handle.end();
            }
            if verdict.probe {
                self.probe();
            }
        }
        for pending in expired {
            let message = format!(
                "{} did not answer in the time it is given (patience_ms)",
                self.name
            );
            let error = io::Error::new(io::ErrorKind::TimedOut, message);
            pending.slot.fill(Err(error));
        }
    }

    /// Finds out whether the server answers on a fresh connection.
    fn probe(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("storage probe".to_owned())
            .spawn(move || {
                let answers = shared.wire.connect().is_ok();
                shared.lock().health.probed(answers);
            });
        if spawned.is_err() {
            self.lock().health.probed(false);
        }
    }

    fn condemn(&self, reason: Condemned) {
        let mut state = self.lock();
        if state.condemned.is_none() {
            tracing::error!(storage = self.name, "{reason}");
        }
        let ended = std::mem::take(&mut state.pending);
        if let Some(connection) = state.connection.take() {
            connection.handle.end();
        }
        state.closed = true;
        state.condemned = Some(reason.clone());
        drop(state);
        for pending in ended.into_values() {
            pending.slot.fill(Err(io::Error::other(reason.clone())));
        }
    }
}

/// Reads a connection and looks after the link while nothing comes.
struct Patient<'a> {
    stream: Stream,
    shared: &'a Arc<Shared>,
    connection: &'a Connection,
}

impl Read for Patient<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.stream.read(buf) {
                Ok(0) if !buf.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    self.shared.tick(Some(self.connection));
                }
                other => return other,
            }
        }
    }
}
