//! Drives the connections of a run: keeps them full, takes their replies, and sleeps in `poll` when none of them moves.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nbd_server::protocol::transmission_flag;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::{ClockId, clock_gettime};

use super::connection::{Connection, Kind, Slot};
use super::content::{self, Content};
use super::handshake::connect;
use super::histogram::Histogram;
use super::pick::Picker;
use super::replies::{self, Place};
use super::{Load, Stop, Target};

/// Bytes that are queued at most before they are sent.
const SEND: usize = 256 << 10;
/// One read of so many is checked byte by byte.
const FULL_CHECK: u64 = 64;
/// A server that answers nothing for so long has failed.
const SILENCE: Duration = Duration::from_secs(60);

/// What a run came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// Requests answered, without flushes.
    pub requests: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// From the first request to the last answer.
    pub elapsed: Duration,
    /// Latency of reads and writes, from the moment a request is queued.
    pub latency: Histogram,
    /// Flushes answered.
    pub flushes: u64,
    /// Bytes read and found right.
    pub verified: u64,
    /// CPU time of the client's thread.
    pub client_cpu: Duration,
}

impl Outcome {
    /// Adds another run of the same kind.
    pub(crate) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.elapsed += other.elapsed;
        self.latency.merge(&other.latency);
        self.flushes += other.flushes;
        self.verified += other.verified;
        self.client_cpu += other.client_cpu;
    }
}

/// Runs a load against a server whose disk holds `content`, which follows what is written.
///
/// # Errors
/// [`super::Mismatch`] for wrong data; whatever the server or the socket does wrong.
pub(crate) fn run(target: &Target, load: &Load, content: &mut Content) -> anyhow::Result<Outcome> {
    let mut connections = Vec::new();
    for _ in 0..load.connections {
        let attached = connect(target, load.structured)?;
        ensure!(
            attached.size >= load.area.end,
            "the export has {} bytes, {} are needed",
            attached.size,
            load.area.end
        );
        connections.push((
            Connection::new(attached, load.depth)?,
            Place::default(),
            0u32,
        ));
    }
    let cpu = thread_cpu();
    let started = Instant::now();
    let mut state = State {
        load,
        picker: Picker::new(load)?,
        content,
        issued: 0,
        deadline: match load.stop {
            Stop::After(length) => Some(started + length),
            Stop::Requests(_) => None,
        },
        outcome: Outcome::default(),
    };
    let mut last = started;
    let mut now = started;
    loop {
        let mut moved = false;
        let more = state.more(now);
        for (index, (connection, place, writes)) in connections.iter_mut().enumerate() {
            if more {
                state.refill(index, connection, writes, now);
            }
            if connection.unsent() > 0 {
                moved |= connection
                    .send()
                    .context("the server closed the connection")?;
            }
            if connection.idle() {
                continue;
            }
            if connection
                .receive()
                .context("the server closed the connection")?
            {
                moved = true;
                now = Instant::now();
                state.take(connection, place, now)?;
            }
        }
        if moved {
            last = now;
        } else {
            if !more && connections.iter().all(|(connection, ..)| connection.idle()) {
                break;
            }
            wait(&connections)?;
            ensure!(
                now.duration_since(last) < SILENCE,
                "the server has not answered for {} s",
                SILENCE.as_secs()
            );
            now = Instant::now();
        }
    }
    let mut outcome = state.outcome;
    outcome.elapsed = last - started;
    outcome.client_cpu = thread_cpu().saturating_sub(cpu);
    Ok(outcome)
}

#[derive(Debug)]
struct State<'a> {
    load: &'a Load,
    picker: Picker,
    content: &'a mut Content,
    issued: u64,
    deadline: Option<Instant>,
    outcome: Outcome,
}

impl State<'_> {
    /// Whether more requests are to be sent.
    fn more(&self, now: Instant) -> bool {
        match (self.load.stop, self.deadline) {
            (Stop::Requests(count), _) => self.issued < count,
            (Stop::After(_), Some(deadline)) => now < deadline,
            (Stop::After(_), None) => false,
        }
    }

    /// Queues a batch, if a quarter of the depth is free: smaller batches cost both sides more system calls and bring
    /// nothing.
    fn refill(
        &mut self,
        index: usize,
        connection: &mut Connection,
        writes: &mut u32,
        now: Instant,
    ) {
        let batch = self.load.depth.div_ceil(4);
        if connection.free() < batch || connection.unsent() > 0 {
            return;
        }
        while connection.free() > 0 && connection.unsent() < SEND && self.more(now) {
            if self.load.flush_every > 0 && *writes >= self.load.flush_every {
                *writes = 0;
                connection.queue(self.slot(Kind::Flush, 0, 0, 0, now), |_| {});
                continue;
            }
            let reads = self.picker.reads();
            let offset = self.picker.pick(index);
            self.issued += 1;
            let len = self.load.block;
            if reads {
                connection.queue(self.slot(Kind::Read, offset, len, 0, now), |_| {});
            } else {
                *writes += 1;
                let version = self.content.next_version();
                connection.queue(self.slot(Kind::Write, offset, len, version, now), |bytes| {
                    content::fill(bytes, offset, version);
                });
            }
        }
    }

    fn slot(&self, kind: Kind, offset: u64, len: usize, version: u32, now: Instant) -> Slot {
        Slot {
            kind,
            offset,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            version,
            sent: now,
            left: if kind == Kind::Read { len } else { 0 },
            full: self.issued.is_multiple_of(FULL_CHECK),
        }
    }

    fn take(
        &mut self,
        connection: &mut Connection,
        place: &mut Place,
        now: Instant,
    ) -> anyhow::Result<()> {
        let Self {
            load,
            picker,
            content,
            outcome,
            ..
        } = self;
        // Writes count as done only after the whole batch is looked at: reads in flight never touch their blocks.
        let mut written: Vec<Slot> = Vec::new();
        replies::take(connection, place, content, load.verify, |slot| {
            if slot.kind == Kind::Flush {
                outcome.flushes += 1;
                return;
            }
            outcome.requests += 1;
            outcome.bytes += u64::from(slot.len);
            outcome.latency.add(now.duration_since(slot.sent), 1);
            picker.done(slot.offset);
            if slot.kind == Kind::Write {
                written.push(slot);
            } else if load.verify {
                outcome.verified += u64::from(slot.len);
            }
        })?;
        for slot in written {
            content.set(slot.offset, slot.len as usize, slot.version);
        }
        Ok(())
    }
}

/// Sleeps until a connection can go on.
fn wait(connections: &[(Connection, Place, u32)]) -> anyhow::Result<()> {
    let mut fds: Vec<PollFd<'_>> = connections
        .iter()
        .map(|(connection, ..)| {
            let mut events = PollFlags::IN;
            if connection.unsent() > 0 {
                events |= PollFlags::OUT;
            }
            PollFd::new(connection.stream(), events)
        })
        .collect();
    let second = rustix::time::Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    };
    match poll(&mut fds, Some(&second)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e).context("poll failed"),
    }
}

fn thread_cpu() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Sends one FLUSH on a connection of its own and says how long it took; none if the server has no flush.
pub(crate) fn flush(target: &Target) -> anyhow::Result<Option<Duration>> {
    let attached = connect(target, false)?;
    if attached.flags & transmission_flag::SEND_FLUSH == 0 {
        return Ok(None);
    }
    let mut connection = Connection::new(attached, 1)?;
    let started = Instant::now();
    let slot = Slot {
        kind: Kind::Flush,
        offset: 0,
        len: 0,
        version: 0,
        sent: started,
        left: 0,
        full: false,
    };
    connection.queue(slot, |_| {});
    let mut connections = [(connection, Place::default(), 0)];
    let content = Content::new(0);
    loop {
        let [(connection, place, _)] = &mut connections;
        connection.send()?;
        if connection
            .receive()
            .context("the server closed the connection")?
        {
            replies::take(connection, place, &content, false, |_| {})?;
        }
        if connection.idle() {
            return Ok(Some(started.elapsed()));
        }
        wait(&connections)?;
    }
}
