//! The QMP connection: typed commands of the `qapi` crate over our own line transport. Knows no VM, only messages.
//!
//! The crate's own stream is not used for two reasons: an event that its schema does not know ends its connection, and
//! it can't put several commands into one write. Here an unknown event is skipped, and a [`Batch`] leaves in one write,
//! so that QEMU runs `migrate` right after `stop` without a round trip between them.
//!
//! QEMU reads slowly ([`outbox`]), and reads the next command only when it has answered the last one. Asking for *out-of-band*
//! execution would let it read on meanwhile; that is not done, as each byte wakes QEMU's main loop, which is busy stopping the guest.

mod outbox;

use std::collections::HashMap;
use std::future::Future;
use std::marker::PhantomData;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use qapi::qmp::{self, MigrationStatus};
use qapi::{Command, Event as _};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::{broadcast, oneshot, watch};

use crate::error::{Error, Result};
use outbox::{Outbox, Text};

/// Events kept for a slow reader; each checkpoint makes about five.
const EVENT_BACKLOG: usize = 1024;

/// Bound of a command's answer. `stop` waits for the guest's disk requests, and those for a gateway that reconnects
/// ([`crate::arguments::RECONNECT_DELAY_SECONDS`]), so this must be longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Something that QEMU reported by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmEvent {
    /// The guest was stopped: by a checkpoint, by an I/O error, or because it ended.
    Stopped,
    /// The guest runs (again).
    Resumed,
    /// A migration (each checkpoint is one) changed its state.
    Migration(MigrationStatus),
    /// The guest ended, or someone ended QEMU. The process stays until it is killed.
    Shutdown {
        /// Whether the guest itself asked for it.
        guest: bool,
        /// QEMU's word for the cause, such as `guest-shutdown` or `host-signal`.
        reason: String,
    },
    /// The guest was reset, by itself or from the outside.
    Reset {
        /// Whether the guest itself asked for it.
        guest: bool,
    },
    /// The guest's kernel reported a panic.
    GuestPanicked,
    /// The guest's kernel reported a crash from which it goes on to a kernel that looks into it.
    GuestCrashLoaded,
    /// The guest has not fed its watchdog.
    Watchdog,
    /// Somebody pressed the guest's power button.
    PowerDown,
    /// Memory of the host is broken where the guest's memory lies.
    MemoryFailure,
    /// A disk request failed; with the action `stop` the guest is stopped until it is resumed.
    BlockIoError {
        /// The QEMU block node, or the device if the node has no name.
        node: String,
        /// `read` or `write`.
        operation: String,
        /// `stop`, `report` or `ignore`.
        action: String,
        /// The system's reason.
        reason: String,
    },
    /// QEMU is gone: the last event.
    Closed,
}

type Answer = Result<Value, String>;

#[derive(Debug)]
struct Shared {
    /// Senders of the answers that are still due; None once the connection is closed.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    migration: watch::Sender<Option<MigrationStatus>>,
    /// Why the guest ended, once it has.
    guest_end: Mutex<Option<String>>,
    /// How often the guest was stopped, counted by events.
    stops: watch::Sender<u64>,
    /// How often it was reset.
    resets: AtomicU64,
    events: broadcast::Sender<VmEvent>,
}

/// A QMP connection that has left negotiation mode.
#[derive(Debug)]
pub(crate) struct Qmp {
    outbox: tokio::sync::Mutex<Outbox>,
    shared: Arc<Shared>,
    version: String,
    reader: tokio::task::JoinHandle<()>,
}

/// Commands that leave in one write.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    commands: Vec<Text>,
    due: Vec<oneshot::Sender<Answer>>,
    then: Option<Text>,
}

impl Batch {
    /// Adds a command.
    pub(crate) fn add<C: Command>(&mut self, command: &C) -> Result<Reply<C>> {
        self.commands.push(Text::of(command)?);
        let (sender, receiver) = oneshot::channel();
        self.due.push(sender);
        Ok(Reply {
            receiver,
            command: PhantomData,
        })
    }

    /// Behind this batch, spells a command ahead that is likely to be next: it will be carried out sooner, if it is, and not at
    /// all if not.
    pub(crate) fn spell_next<C: Command>(&mut self, command: &C) -> Result<()> {
        self.then = Some(Text::of(command)?);
        Ok(())
    }
}

/// The answer to one command, a future.
#[derive(Debug)]
pub(crate) struct Reply<C> {
    receiver: oneshot::Receiver<Answer>,
    command: PhantomData<fn() -> C>,
}

impl Qmp {
    /// Takes over a connected socket: reads the greeting and negotiates.
    pub(crate) async fn connect(socket: StdUnixStream) -> Result<Self> {
        let problem = |e: std::io::Error| Error::Qmp {
            problem: e.to_string(),
        };
        socket.set_nonblocking(true).map_err(problem)?;
        let (read, write) = UnixStream::from_std(socket).map_err(problem)?.into_split();
        let mut lines = BufReader::new(read).lines();
        let greeting = lines
            .next_line()
            .await
            .map_err(problem)?
            .ok_or(Error::QmpClosed)?;
        let greeting: Greeting = serde_json::from_str(&greeting).map_err(|e| Error::Qmp {
            problem: format!("not a QMP greeting: {e}"),
        })?;
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Some(HashMap::new())),
            migration: watch::Sender::new(None),
            guest_end: Mutex::new(None),
            stops: watch::Sender::new(0),
            resets: AtomicU64::new(0),
            events: broadcast::Sender::new(EVENT_BACKLOG),
        });
        let reader = tokio::spawn(read_all(lines, Arc::clone(&shared)));
        let qemu = greeting.qmp.version.qemu;
        let connection = Qmp {
            outbox: tokio::sync::Mutex::new(Outbox::new(write)),
            shared,
            version: format!("{}.{}.{}", qemu.major, qemu.minor, qemu.micro),
            reader,
        };
        connection
            .execute(&qmp::qmp_capabilities { enable: None })
            .await?;
        Ok(connection)
    }

    /// QEMU's version, such as `7.2.22`.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Events from now on.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<VmEvent> {
        self.shared.events.subscribe()
    }

    /// Sends a batch in one write.
    pub(crate) async fn send(&self, batch: Batch) -> Result<()> {
        let Batch {
            commands,
            due,
            then,
        } = batch;
        let expect = |ids: Vec<u64>| {
            let mut waiting = self.shared.lock_waiting();
            waiting
                .as_mut()
                .ok_or(Error::QmpClosed)?
                .extend(ids.into_iter().zip(due));
            Ok(())
        };
        let mut outbox = self.outbox.lock().await;
        outbox.send(&commands, then.as_ref(), expect).await
    }

    /// Sends one command and waits for its answer.
    pub(crate) async fn execute<C: Command>(&self, command: &C) -> Result<C::Ok> {
        let mut batch = Batch::default();
        let mut reply = batch.add(command)?;
        self.send(batch).await?;
        reply.answer().await
    }

    /// Forgets the state of an earlier migration. To be called before a new one is started.
    pub(crate) fn forget_migration(&self) {
        self.shared.migration.send_replace(None);
    }

    /// Waits until the migration that was started last is over; `Ok` when it completed.
    pub(crate) async fn migration_end(&self) -> Result<()> {
        let mut state = self.shared.migration.subscribe();
        let ended = state.wait_for(|s| {
            matches!(
                s,
                Some(
                    MigrationStatus::completed
                        | MigrationStatus::failed
                        | MigrationStatus::cancelled
                )
            ) || self.is_closed()
        });
        let status = within("finish the device state", ended)
            .await?
            .map(|status| *status)
            .map_err(|_| Error::QmpClosed)?;
        match status {
            Some(MigrationStatus::completed) => Ok(()),
            None => Err(Error::QmpClosed),
            Some(other) => Err(Error::DeviceState {
                problem: format!("QEMU's migration ended as {other:?}"),
            }),
        }
    }

    /// Why the guest ended; None while it has not. Such a guest must not be resumed, and QEMU itself would do so: a
    /// checkpoint makes it forget that the guest had shut down.
    pub(crate) fn guest_end(&self) -> Option<String> {
        self.shared
            .guest_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How often the guest was stopped. QEMU tells before it answers to `stop`, and only if the guest was running.
    pub(crate) fn stops(&self) -> u64 {
        *self.shared.stops.borrow()
    }

    /// Waits until the guest was stopped more often than `stops` times. Never returns if that does not happen.
    pub(crate) async fn stopped_after(&self, stops: u64) {
        let mut now = self.shared.stops.subscribe();
        // An error says that this connection is gone, which it can't be while it is borrowed.
        let _ = now.wait_for(|now| *now > stops).await;
    }

    /// How often the guest was reset. QEMU tells before it answers to any command that came after the reset.
    pub(crate) fn resets(&self) -> u64 {
        self.shared.resets.load(Ordering::Acquire)
    }

    fn is_closed(&self) -> bool {
        self.shared.lock_waiting().is_none()
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl<C: Command> Reply<C> {
    /// Waits for the answer, but not forever. To be called once.
    pub(crate) async fn answer(&mut self) -> Result<C::Ok> {
        within("answer a QMP command", self).await?
    }
}

impl<C: Command> Future for Reply<C> {
    type Output = Result<C::Ok>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.receiver)
            .poll(cx)
            .map(|answer| match answer {
                Ok(Ok(value)) => serde_json::from_value(value).map_err(|e| Error::Qmp {
                    problem: format!("unexpected answer to `{}`: {e}", C::NAME),
                }),
                Ok(Err(description)) => Err(Error::Refused {
                    command: C::NAME,
                    description,
                }),
                Err(_) => Err(Error::QmpClosed),
            })
    }
}

async fn within<F: Future>(what: &'static str, future: F) -> Result<F::Output> {
    tokio::time::timeout(ANSWER_TIMEOUT, future)
        .await
        .map_err(|_| Error::Timeout {
            what,
            seconds: ANSWER_TIMEOUT.as_secs(),
        })
}

#[derive(Deserialize)]
struct Greeting {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: qmp::VersionInfo,
}

/// Any line after the greeting. Unknown fields are welcome: newer QEMUs add them.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
    event: Option<String>,
    data: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Shared {
    fn lock_waiting(
        &self,
    ) -> std::sync::MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<Answer>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, line: Line) {
        if let Some(name) = line.event {
            match read_event(&name, line.data.unwrap_or_default()) {
                Some(event) => {
                    let migration = match event {
                        VmEvent::Migration(status) => Some(status),
                        _ => None,
                    };
                    match &event {
                        VmEvent::Stopped => {
                            self.stops.send_modify(|stops| *stops += 1);
                        }
                        VmEvent::Reset { .. } => {
                            self.resets.fetch_add(1, Ordering::Release);
                        }
                        VmEvent::Shutdown { reason, .. } => {
                            *self
                                .guest_end
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
                        }
                        _ => {}
                    }
                    // Nobody listening is fine.
                    let _ = self.events.send(event);
                    // Last: who waits for the end of a migration and then listens must not be told of that end.
                    if migration.is_some() {
                        self.migration.send_replace(migration);
                    }
                }
                None => tracing::trace!(event = name, "skipped a QMP event"),
            }
            return;
        }
        let numbered = line.id.is_some();
        let waiting = line
            .id
            .and_then(|id| self.lock_waiting().as_mut()?.remove(&id));
        let answer = match (line.answer, line.error) {
            (Some(value), None) => Ok(value),
            (_, Some(refusal)) => Err(refusal.desc),
            (None, None) => Err("an answer with neither return nor error".into()),
        };
        match (waiting, answer) {
            // A caller that stopped waiting is fine.
            (Some(sender), answer) => drop(sender.send(answer)),
            (None, Err(description)) if !numbered => {
                tracing::warn!(description, "QEMU refused what is no command")
            }
            // It was spelled ahead and not sent, or nobody waits for it any more.
            (None, _) => tracing::debug!("QEMU answered a command that nobody waits for"),
        }
    }

    fn close(&self) {
        *self.lock_waiting() = None;
        self.migration.send_modify(|_| ());
        let _ = self.events.send(VmEvent::Closed);
    }
}

async fn read_all(mut lines: Lines<BufReader<OwnedReadHalf>>, shared: Arc<Shared>) {
    // An error here is the end as well: it means that QEMU is gone.
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Line>(&line) {
            Ok(line) => shared.take(line),
            Err(error) => tracing::warn!(%error, "QEMU sent a line that is not QMP"),
        }
    }
    shared.close();
}

/// The events that matter here; None for all others and for those of a shape that we don't know.
fn read_event(name: &str, data: Value) -> Option<VmEvent> {
    fn typed<T: serde::de::DeserializeOwned>(data: Value) -> Option<T> {
        serde_json::from_value(data)
            .inspect_err(|error| tracing::warn!(%error, "a QMP event has an unknown shape"))
            .ok()
    }
    // Words are taken as QEMU writes them: a newer QEMU may have causes that the crate's enums lack.
    let word = |data: &Value, key: &str| {
        data.get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let by_guest = |data: &Value| data.get("guest").and_then(Value::as_bool).unwrap_or(false);
    Some(match name {
        qmp::STOP::NAME => VmEvent::Stopped,
        qmp::RESUME::NAME => VmEvent::Resumed,
        qmp::MIGRATION::NAME => VmEvent::Migration(typed::<qmp::MIGRATION>(data)?.status),
        qmp::SHUTDOWN::NAME => VmEvent::Shutdown {
            guest: by_guest(&data),
            reason: word(&data, "reason"),
        },
        qmp::RESET::NAME => VmEvent::Reset {
            guest: by_guest(&data),
        },
        qmp::GUEST_PANICKED::NAME => VmEvent::GuestPanicked,
        qmp::GUEST_CRASHLOADED::NAME => VmEvent::GuestCrashLoaded,
        qmp::WATCHDOG::NAME => VmEvent::Watchdog,
        qmp::POWERDOWN::NAME => VmEvent::PowerDown,
        qmp::MEMORY_FAILURE::NAME => VmEvent::MemoryFailure,
        qmp::BLOCK_IO_ERROR::NAME => VmEvent::BlockIoError {
            node: Some(word(&data, "node-name"))
                .filter(|n| !n.is_empty())
                .unwrap_or_else(|| word(&data, "device")),
            operation: word(&data, "operation"),
            action: word(&data, "action"),
            reason: word(&data, "reason"),
        },
        _ => return None,
    })
}
