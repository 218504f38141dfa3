//! Reads and writes an object on a server below such that nothing that was written is lost when the server restarts: what it may have in
//! memory only is kept here until it is flushed, and sent again when the server that is flushed is not the one that it was written to.
//! Writes can go on while earlier ones are on their way. Knows no protocol.
//!
//! Two writes that overlap are never under way at once, also not as a repetition: their order would be the server's choice.

mod reading;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::kept::{Again, Content, Kept, Standing};
use super::link::Ticket;
use super::remote::{self, Op, Remote};

/// Most bytes on their way at once, and most writes.
const WINDOW: (usize, usize) = (16 << 20, 128);
/// What is kept for a server that may restart; more is flushed first.
const KEEP: usize = 64 << 20;
/// Most bytes of one read and one write: several are under way at once, so larger ones are no faster.
const PIECE: usize = 1 << 20;
/// Zeros to be written where the server can't make them by itself.
static ZEROS: [u8; PIECE] = [0; PIECE];
/// What is told apart when a range is to be zeros: an image stays sparse in steps of this.
const GRAIN: usize = 64 << 10;
/// A stretch that is looked at as one when it is to be zeros.
const LOOK: usize = 4 << 20;

/// A write on its way.
#[derive(Debug)]
struct Flight {
    range: Range<u64>,
    op: Op,
    /// Number of the write.
    write: u64,
    ticket: Ticket,
    way: Way,
    ended: Mutex<Option<Option<Failure>>>,
}

/// Who hears of a write that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Whoever writes, who waits.
    Waits,
    /// The next flush.
    Behind,
    /// Nobody: it was answered before, is kept, and tried again.
    Again,
}

/// An error that several are told.
#[derive(Debug, Clone)]
struct Failure {
    code: Option<i32>,
    kind: io::ErrorKind,
    message: String,
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        Self {
            code: error.raw_os_error(),
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

impl Failure {
    fn error(&self) -> io::Error {
        match self.code {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.kind, self.message.clone()),
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    kept: Kept,
    flights: Vec<Arc<Flight>>,
    /// Bytes on their way.
    flying: usize,
    /// Flushes that have begun.
    round: u64,
    /// Writes so far.
    writes: u64,
    /// Something was changed since the last flush that is not kept.
    dirty: bool,
    /// Of a write that nobody waited for.
    failure: Option<Failure>,
}

/// An object on a server.
#[derive(Debug)]
pub(super) struct Volume<R> {
    remote: R,
    inner: Mutex<Inner>,
    flush: Mutex<()>,
}

impl<R: Remote> Volume<R> {
    /// The volume of `remote`. What others wrote to it before counts as not flushed.
    pub fn new(remote: R) -> Self {
        Self {
            remote,
            inner: Mutex::new(Inner {
                dirty: true,
                ..Inner::default()
            }),
            flush: Mutex::default(),
        }
    }

    /// The object.
    pub fn remote(&self) -> &R {
        &self.remote
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes, and waits until the server has it.
    ///
    /// # Errors
    /// What the server says; a part may be written then.
    pub fn write(&self, offset: u64, data: &Bytes) -> io::Result<()> {
        let flights = self.write_with(offset, data, Way::Waits)?;
        let ends: Vec<_> = flights.iter().map(|flight| self.finish(flight)).collect();
        ends.into_iter().collect()
    }

    /// Begins to write. Errors come from the next [`Volume::sync`] at the latest.
    ///
    /// # Errors
    /// What the server says about what was written before.
    pub fn write_behind(&self, offset: u64, data: &Bytes) -> io::Result<()> {
        self.write_with(offset, data, Way::Behind).map(drop)
    }

    fn write_with(&self, offset: u64, data: &Bytes, way: Way) -> io::Result<Vec<Arc<Flight>>> {
        let step = self.remote.limits().write.clamp(1, PIECE);
        let mut flights = Vec::new();
        let mut done = 0;
        while done < data.len() {
            let end = data.len().min(done + step);
            let content = Content::Data(data.slice(done..end));
            flights.push(self.launch(offset + done as u64, content, way)?);
            done = end;
        }
        Ok(flights)
    }

    /// Makes a range zeros, without taking space for it where that can be seen.
    ///
    /// # Errors
    /// What the server says; a part may be cleared then.
    pub fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        if self.remote.limits().zero {
            // The lengths of the protocol's requests end at 32 bits.
            let mut at = offset;
            let mut flights = Vec::new();
            while at < end {
                let part = (end - at).min(1 << 30);
                flights.push(self.launch(at, Content::Zeros(part), Way::Waits)?);
                at += part;
            }
            let ends: Vec<_> = flights.iter().map(|flight| self.finish(flight)).collect();
            return ends.into_iter().collect();
        }
        let mut at = offset;
        let mut look = vec![0; usize::try_from(len).unwrap_or(LOOK).min(LOOK)];
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(LOOK).min(LOOK);
            let look = look.get_mut(..part).unwrap_or_default();
            let got = self.read(at, look)?;
            // What is not zero yet, in stretches. Behind the end there is no telling.
            let mut due = 0..0;
            for (grain, from) in look.chunks(GRAIN).zip((0_u64..).step_by(GRAIN)) {
                let to = from + grain.len() as u64;
                let is_zero = to <= got as u64 && grain.iter().all(|byte| *byte == 0);
                if is_zero || from > due.end || to - due.start > PIECE as u64 {
                    self.write_zeros(at, &due)?;
                    due = from..from;
                }
                if !is_zero {
                    due.end = to;
                }
            }
            self.write_zeros(at, &due)?;
            at += part as u64;
        }
        Ok(())
    }

    /// Writes zeros to a stretch, given from `at` on, of at most [`PIECE`] bytes.
    fn write_zeros(&self, at: u64, stretch: &Range<u64>) -> io::Result<()> {
        if stretch.is_empty() {
            return Ok(());
        }
        let len = usize::try_from(stretch.end - stretch.start).unwrap_or(PIECE);
        let zeros = ZEROS.get(..len).unwrap_or(&ZEROS);
        self.write(at + stretch.start, &Bytes::from_static(zeros))
    }

    /// Gives a range back, where the server can do that. What is read there afterwards is anything.
    ///
    /// # Errors
    /// What the server says.
    pub fn trim(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.remote.limits().trim {
            return Ok(());
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let len = (end - at).min(1 << 30);
            let flight = self.depart(
                at..at + len,
                || Op::Trim { offset: at, len },
                Way::Waits,
                |inner| {
                    // What is not flushed there would be sent again, and need not be.
                    inner.kept.cut(at..at + len);
                    true
                },
            )?;
            if let Some(flight) = flight {
                self.finish(&flight)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Sends a write on its way when nothing that overlaps is on its, and there is room.
    fn launch(&self, offset: u64, content: Content, way: Way) -> io::Result<Arc<Flight>> {
        let too_much = |inner: &Inner| inner.kept.weight() > KEEP;
        if way != Way::Again && too_much(&self.lock()) {
            self.sync()?;
        }
        let range = offset..offset + content.len();
        let op = || op_of(offset, &content);
        let keep = |inner: &mut Inner| {
            let (write, round) = (inner.writes, inner.round);
            inner.kept.insert(offset, content.clone(), write, round);
            true
        };
        let flight = self.depart(range, op, way, keep)?;
        flight.ok_or_else(|| io::Error::other("a write was not kept"))
    }

    /// The same for what was kept, unless it is no longer the newest of its range.
    fn launch_again(&self, again: &Again) -> io::Result<Option<Arc<Flight>>> {
        let range = again.offset..again.offset + again.content.len();
        let op = || op_of(again.offset, &again.content);
        self.depart(range, op, Way::Again, |inner| {
            let waits = inner.kept.waits(again);
            if waits {
                // Under a number of its own, which newer pieces do not have.
                inner.kept.insert(
                    again.offset,
                    again.content.clone(),
                    inner.writes,
                    inner.round.saturating_sub(1),
                );
            }
            waits
        })
    }

    fn depart(
        &self,
        range: Range<u64>,
        op: impl Fn() -> Op,
        way: Way,
        enter: impl Fn(&mut Inner) -> bool,
    ) -> io::Result<Option<Arc<Flight>>> {
        let flight = loop {
            let mut inner = self.lock();
            let overlaps = |flight: &&Arc<Flight>| {
                flight.range.start < range.end && range.start < flight.range.end
            };
            let is_full = inner.flying >= WINDOW.0 || inner.flights.len() >= WINDOW.1;
            let in_the_way = match inner.flights.iter().find(overlaps) {
                None if is_full => inner.flights.first(),
                found => found,
            };
            if let Some(flight) = in_the_way.cloned() {
                drop(inner);
                // Who has to know of an error learns of it all the same.
                let _ = self.finish(&flight);
                continue;
            }
            inner.writes += 1;
            if !enter(&mut inner) {
                return Ok(None);
            }
            let op = op();
            let flight = Arc::new(Flight {
                range: range.clone(),
                ticket: remote::begin(&self.remote, &op),
                op,
                write: inner.writes,
                way,
                ended: Mutex::default(),
            });
            inner.flying += weight(&flight);
            inner.flights.push(Arc::clone(&flight));
            break flight;
        };
        self.remote.link().send(&flight.ticket);
        Ok(Some(flight))
    }

    /// Waits for the end of a write, and sees to what follows. Whoever comes later is told the same.
    fn finish(&self, flight: &Arc<Flight>) -> io::Result<()> {
        let mut ended = flight.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(end) = ended.as_ref() {
            return end.as_ref().map_or(Ok(()), |failure| Err(failure.error()));
        }
        let outcome = remote::finish(&self.remote, &flight.op, &flight.ticket);
        let range = flight.range.clone();
        let mut inner = self.lock();
        inner.flights.retain(|other| !Arc::ptr_eq(other, flight));
        inner.flying -= weight(flight);
        inner.dirty |= matches!(flight.op, Op::Trim { .. });
        let failure = match outcome {
            Ok(outcome) => {
                let standing = match outcome.life {
                    _ if outcome.durable => Standing::Durable,
                    Some(life) => Standing::Received(life),
                    None => Standing::Unanswered,
                };
                inner.kept.mark(range, flight.write, standing);
                None
            }
            Err(error) => {
                let failure = Failure::from(&error);
                if flight.way != Way::Again {
                    inner.kept.forget(range, flight.write);
                }
                if flight.way == Way::Behind {
                    inner.failure.get_or_insert_with(|| failure.clone());
                }
                Some(failure)
            }
        };
        drop(inner);
        let said = failure
            .as_ref()
            .map_or(Ok(()), |failure| Err(failure.error()));
        *ended = Some(failure);
        said
    }

    /// Makes durable everything that was written before, also if the server has restarted since.
    ///
    /// # Errors
    /// What the server says about that, or about a write that nobody waited for. What was answered before is kept and tried again by the
    /// next call.
    pub fn sync(&self) -> io::Result<()> {
        let _one_at_a_time = self.flush.lock().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.lock();
        let flights = inner.flights.clone();
        let round = inner.round;
        inner.round += 1;
        drop(inner);
        for flight in &flights {
            let _ = self.finish(flight);
        }
        loop {
            let mut inner = self.lock();
            if let Some(failure) = inner.failure.take() {
                return Err(failure.error());
            }
            inner.kept.drop_durable();
            let again = inner.kept.unanswered(round);
            if !inner.dirty && !inner.kept.has(round) {
                return Ok(());
            }
            inner.dirty = false;
            drop(inner);
            if let Err(error) = self
                .send_again(&again)
                .and_then(|()| self.flush_once(round))
            {
                self.lock().dirty = true;
                return Err(error);
            }
        }
    }

    fn send_again(&self, again: &[Again]) -> io::Result<()> {
        let mut flights = Vec::new();
        for again in again {
            flights.extend(self.launch_again(again)?);
        }
        let ends: Vec<_> = flights.iter().map(|flight| self.finish(flight)).collect();
        ends.into_iter().collect()
    }

    fn flush_once(&self, round: u64) -> io::Result<()> {
        let life = remote::run(&self.remote, &Op::Flush)?.life;
        let life = life.ok_or_else(|| io::Error::other("a flush in no life of the server"))?;
        let mut inner = self.lock();
        // Only what was received in the life that was flushed is on the disk; what another one has received may be lost.
        inner.kept.flushed(round, life);
        let lost = inner.kept.expire(life);
        if lost > 0 {
            tracing::warn!(
                storage = self.remote.link().name(),
                bytes = lost,
                "the storage may have restarted before a flush; what was not flushed is written again"
            );
        }
        Ok(())
    }

    /// Where the last of what is not flushed ends.
    pub fn kept_end(&self) -> u64 {
        self.lock().kept.end()
    }

    /// Forgets what was written from `len` on, and waits until nothing is on its way any more.
    pub fn cut(&self, len: u64) {
        loop {
            let mut inner = self.lock();
            let Some(flight) = inner.flights.first().cloned() else {
                inner.kept.cut(len..u64::MAX);
                inner.dirty = true;
                return;
            };
            drop(inner);
            let _ = self.finish(&flight);
        }
    }
}

fn op_of(offset: u64, content: &Content) -> Op {
    match content {
        Content::Data(data) => Op::Write {
            offset,
            data: data.clone(),
        },
        Content::Zeros(len) => Op::Zero { offset, len: *len },
    }
}

fn weight(flight: &Flight) -> usize {
    match &flight.op {
        Op::Write { data, .. } => data.len(),
        _ => 0,
    }
}
