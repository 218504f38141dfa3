//! The transmission phase of one connection: takes requests off the socket, answers in place or through a worker.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::Batch;
use super::credit::{Credit, Credits};
use super::handshake::Attachment;
use super::outbox::{Outbox, Reply};
use super::polling::Poller;
use super::receive_buffer::ReceiveBuffer;
use super::socket::Socket;
use super::throttle::Throttle;
use super::workers::Lane;
use super::{ConnectionError, Context, answers, payload};
use crate::export::{Export, IoError, Since};
use crate::metrics::{Kind, Started, Tally};
use crate::protocol::command;
use crate::transmission::{Operation, Request, Rules};

/// Payloads above this are received into their own buffer; below, a copy out of the receive buffer costs less than a system call.
const DIRECT_PAYLOAD: usize = 64 << 10;
/// Reads above this go to a worker at once: copying them would hold up everything behind them.
const MAX_INLINE_READ: usize = 1 << 20;
/// Reads from here on are sent from the page cache itself, if they lie there: two system calls more cost less than the copy.
const MIN_SENT_FILE: usize = 64 << 10;
/// Answers of a batch are sent when they have grown to this, so that the client works on them while the batch goes on.
const MAX_BATCH: usize = 256 << 10;

/// A connection that keeps its export's pace looks this often whether it is to end.
const PACE_STEP: Duration = Duration::from_millis(50);

/// One attached connection.
pub(super) struct Session {
    socket: Arc<Socket>,
    /// Before the export: when that has detached, nothing of its past is kept any more.
    points: Arc<[Arc<dyn Since>]>,
    export: Arc<dyn Export>,
    rules: Arc<Rules>,
    outbox: Arc<Outbox>,
    credits: Arc<Credits>,
    lane: Arc<Lane>,
    stopping: Arc<AtomicBool>,
    throttle: Option<Arc<Throttle>>,
    /// At a stop the client is disconnected, and not told.
    reconnects: bool,
    /// Answers made in place and not yet sent.
    batch: Batch,
    tally: Tally,
    /// Requests in the last batch.
    batch_requests: usize,
    poller: Poller,
}

/// A client that had more requests than this under way has a queue: polling for the next would take it apart.
const DEEP: usize = 2;

enum Flow {
    Continue,
    Disconnect,
}

impl Session {
    pub(super) fn new(socket: Arc<Socket>, context: &Context, attachment: Attachment) -> Self {
        let limits = &context.limits;
        Self {
            reconnects: attachment.rules.info().reconnects,
            tally: Tally::new(attachment.export.meter().unwrap_or_default()),
            export: attachment.export,
            points: attachment.points,
            rules: Arc::new(attachment.rules),
            outbox: Outbox::new(Arc::clone(&socket)),
            credits: Credits::new(
                limits.max_in_flight,
                limits.max_in_flight_bytes,
                Arc::clone(&context.pool),
            ),
            lane: Lane::new(
                Arc::clone(&context.workers),
                limits.max_workers_per_connection,
            ),
            stopping: Arc::clone(&context.stopping),
            throttle: attachment.throttle,
            batch: Batch::default(),
            batch_requests: 0,
            poller: Poller::new(&context.poll_slots),
            socket,
        }
    }

    /// What is under way, and whether the client reconnects.
    pub(super) fn standing(&self) -> (Arc<Credits>, bool) {
        (Arc::clone(&self.credits), self.reconnects)
    }

    /// Serves until the client leaves, the connection breaks or is cut, or the server stops; then waits for what is under way.
    pub(super) fn run(mut self, input: &mut ReceiveBuffer) -> Result<(), ConnectionError> {
        let result = self.serve(input);
        // What was done is answered, also when the next request was malformed.
        let flushed = self.flush();
        self.credits.wait_until_all_returned();
        self.outbox.close();
        if self.socket.is_cut() {
            // Cut by a takeover, by a stop, or by a failed send that has been the end of it: no fault to report twice.
            return Ok(());
        }
        result.and(flushed)
    }

    fn serve(&mut self, input: &mut ReceiveBuffer) -> Result<(), ConnectionError> {
        loop {
            let stopping = self.stopping.load(Ordering::Acquire);
            if stopping && self.reconnects {
                return Ok(());
            }
            if let Flow::Disconnect = self.serve_batch(input, stopping)? {
                return Ok(());
            }
            self.flush()?;
            // "the server SHOULD wait for inflight requests to be serviced"; what else comes until then has been refused.
            if self.socket.is_cut() || (stopping && self.credits.are_all_returned()) {
                return Ok(());
            }
            match self
                .poller
                .fill(input, &self.socket, self.batch_requests > DEEP)
            {
                Ok(0) if input.filled().is_empty() => return Ok(()),
                Ok(0) => return Err(ConnectionError::Socket(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => self.tally.received(),
                Err(error) => return Err(ConnectionError::Socket(error)),
            }
        }
    }

    /// Takes every request that is complete in `input`, and a last one whose large payload is still to come. `stopping`: refuses them.
    fn serve_batch(
        &mut self,
        input: &mut ReceiveBuffer,
        stopping: bool,
    ) -> Result<Flow, ConnectionError> {
        let head = self.rules.agreed().headers.request_len();
        self.batch_requests = 0;
        while let Some(request) = self.rules.parse(input.filled())? {
            let payload_len = request.payload_len as usize;
            let complete = input.filled().len() >= head + payload_len;
            if !complete && payload_len > 0 && payload_len <= DIRECT_PAYLOAD {
                break;
            }
            self.batch_requests += 1;
            let payload = input.filled().get(head..head + payload_len);
            let checked = match self.rules.check(&request, payload.unwrap_or_default()) {
                Ok(operation) if stopping && operation != Operation::Disconnect => {
                    Err(IoError::Shutdown)
                }
                checked => checked,
            };
            if self.throttle.is_some() {
                self.keep_pace(&request)?;
            }
            match checked {
                Err(error) => {
                    input.consume(head);
                    self.discard(input, payload_len)?;
                    self.answer(&request, Err(error));
                }
                Ok(Operation::Disconnect) => return Ok(Flow::Disconnect),
                Ok(Operation::Write { offset, fua, .. }) => {
                    input.consume(head);
                    if complete && payload_len <= DIRECT_PAYLOAD {
                        let held = input.filled().get(..payload_len).unwrap_or_default();
                        let done = self.export.try_write(offset, held, fua);
                        if done == Ok(false) {
                            let data = Bytes::copy_from_slice(held);
                            let credit = self.take_credit(payload_len)?;
                            self.submit_write(request, offset, data, fua, credit);
                        } else {
                            self.answer(&request, done.map(drop));
                        }
                        input.consume(payload_len);
                    } else {
                        let (data, credit) = self.receive_payload(input, payload_len)?;
                        let done = self.export.try_write(offset, &data, fua);
                        if done == Ok(false) {
                            self.submit_write(request, offset, data, fua, credit);
                        } else {
                            self.answer(&request, done.map(drop));
                        }
                    }
                }
                Ok(operation) => {
                    // A payload that the check has looked at is whole, and done with.
                    input.consume(head + payload_len);
                    self.dispatch(request, operation)?;
                }
            }
            if self.batch.len() >= MAX_BATCH {
                self.flush()?;
            }
            if self.socket.is_cut() {
                break;
            }
        }
        Ok(Flow::Continue)
    }

    fn receive_payload(
        &mut self,
        input: &mut ReceiveBuffer,
        len: usize,
    ) -> Result<(Bytes, Credit), ConnectionError> {
        let credit = self.take_credit(len)?;
        let mut data = Vec::with_capacity(len);
        let held = input.filled().len().min(len);
        data.extend_from_slice(input.filled().get(..held).unwrap_or_default());
        input.consume(held);
        if held < len {
            // The client may be waiting for answers while it sends.
            self.flush()?;
            payload::receive(&self.socket, &mut data, len).map_err(ConnectionError::Socket)?;
        }
        Ok((Bytes::from(data), credit))
    }

    /// Skips the payload of a refused request, whatever length it claims.
    fn discard(&mut self, input: &mut ReceiveBuffer, len: usize) -> Result<(), ConnectionError> {
        let mut remaining = len;
        loop {
            let held = input.filled().len().min(remaining);
            input.consume(held);
            remaining -= held;
            if remaining == 0 {
                return Ok(());
            }
            self.flush()?;
            if input.fill(&self.socket).map_err(ConnectionError::Socket)? == 0 {
                return Err(ConnectionError::Socket(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn submit_write(&self, request: Request, offset: u64, data: Bytes, fua: bool, credit: Credit) {
        self.submit(request, credit, move |export| {
            export.write(offset, data, fua)
        });
    }

    /// Everything but WRITE, whose payload the caller has to take, and DISC.
    fn dispatch(&mut self, request: Request, operation: Operation) -> Result<(), ConnectionError> {
        let credit = match operation {
            Operation::Read { len, fragment, .. } => return self.read(request, len, fragment),
            Operation::Nothing => {
                self.answer(&request, Ok(()));
                return Ok(());
            }
            Operation::BlockStatus {
                one: false,
                contexts,
                ..
            } => self.take_credit(answers::max_status_reply(contexts))?,
            _ => self.take_credit(0)?,
        };
        if let Operation::BlockStatus {
            len, one, contexts, ..
        } = operation
        {
            let points = Arc::clone(&self.points);
            self.submit_reply(request, credit, move |export, rules| {
                answers::block_status(export, &points, rules, &request, len, one, contexts)
            });
            return Ok(());
        }
        let rules = Arc::clone(&self.rules);
        self.submit(request, credit, move |export| match operation {
            Operation::Flush => export.flush(),
            Operation::Trim { offset, len, fua } => export.trim(offset, len, fua),
            Operation::WriteZeroes {
                offset,
                len,
                may_trim,
                fast,
                fua,
            } => export.write_zeroes(offset, len, may_trim, fast, fua),
            Operation::Cache { offset, len } => export.cache(offset, len),
            Operation::Resize { size } => {
                export.resize(size)?;
                rules.resized(size);
                Ok(())
            }
            Operation::Read { .. }
            | Operation::Write { .. }
            | Operation::BlockStatus { .. }
            | Operation::Nothing
            | Operation::Disconnect => Err(IoError::Inval),
        });
        Ok(())
    }

    fn read(&mut self, request: Request, len: u32, fragment: bool) -> Result<(), ConnectionError> {
        let size = len as usize;
        let head = self.rules.read_head_len();
        if size >= MIN_SENT_FILE
            && self.socket.is_clear()
            && let Some(file) = self.export.cached_in(request.offset, size as u64)
        {
            self.rules
                .put_read_head(self.batch.room(head), &request, len);
            self.batch.keep(head);
            self.tally.answered(Kind::Read, request.length, None);
            self.tally.settle();
            let batch = self.batch.bytes();
            let sent = self
                .outbox
                .send_batch_and_file(batch, file, request.offset, size);
            self.batch.clear();
            return sent.map_err(ConnectionError::Socket);
        }
        if size <= MAX_INLINE_READ {
            if self.batch.len() + head + size > MAX_BATCH {
                self.flush()?;
            }
            let (reply_head, data) = self.batch.room(head + size).split_at_mut(head);
            match self.export.try_read(request.offset, data) {
                Ok(true) => {
                    self.rules.put_read_head(reply_head, &request, len);
                    self.batch.keep(head + size);
                    self.tally.answered(Kind::Read, request.length, None);
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => {
                    self.answer(&request, Err(error));
                    return Ok(());
                }
            }
        }
        let credit = self.take_credit(size)?;
        self.submit_reply(request, credit, move |export, rules| {
            answers::read(export, rules, &request, len, fragment)
        });
        Ok(())
    }

    /// Answers in place.
    fn answer(&mut self, request: &Request, outcome: Result<(), IoError>) {
        let kind = Kind::of(request.kind);
        self.tally.answered(kind, request.length, outcome.err());
        self.batch.put_outcome(&self.rules, request, outcome);
    }

    /// Work that makes a reply with data.
    fn submit_reply(
        &self,
        request: Request,
        credit: Credit,
        work: impl FnOnce(&dyn Export, &Rules) -> Result<Vec<u8>, IoError> + Send + 'static,
    ) {
        let pending = self.pending(request, credit);
        let export = Arc::clone(&self.export);
        self.lane.submit(move || {
            let reply = work(export.as_ref(), &pending.rules);
            // The last answer lets the connection end, and with it the attachment: nothing here may outlive that.
            drop(export);
            match reply {
                Ok(reply) => pending.send(reply),
                Err(error) => pending.answer(Err(error)),
            }
        });
    }

    /// Work that succeeds or fails, and no more.
    fn submit(
        &self,
        request: Request,
        credit: Credit,
        work: impl FnOnce(&dyn Export) -> Result<(), IoError> + Send + 'static,
    ) {
        let pending = self.pending(request, credit);
        let export = Arc::clone(&self.export);
        self.lane.submit(move || {
            let outcome = work(export.as_ref());
            // The last answer lets the connection end, and with it the attachment: nothing here may outlive that.
            drop(export);
            pending.answer(outcome);
        });
    }

    fn pending(&self, request: Request, credit: Credit) -> Pending {
        Pending {
            request,
            rules: Arc::clone(&self.rules),
            outbox: Arc::clone(&self.outbox),
            socket: Arc::clone(&self.socket),
            credit: Some(credit),
            started: Some(self.tally.start(Kind::of(request.kind), request.length)),
        }
    }

    /// Credit for a request that leaves this thread. Before it waits, the client gets all answers there are: it may be those that
    /// it waits for.
    fn take_credit(&mut self, bytes: usize) -> Result<Credit, ConnectionError> {
        if let Some(credit) = self.credits.try_take(bytes) {
            return Ok(credit);
        }
        self.flush()?;
        let socket = &self.socket;
        let credit = self.credits.take(bytes, &|| socket.is_cut());
        credit.ok_or_else(|| ConnectionError::Socket(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Waits as long as the export's pace asks for, but not beyond the end of the connection or of the server.
    fn keep_pace(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let bytes = match request.kind {
            command::READ | command::WRITE => request.length,
            _ => 0,
        };
        let now = Instant::now();
        let wait = self
            .throttle
            .as_ref()
            .map(|throttle| throttle.take(bytes, now));
        let Some(until) = wait
            .filter(|wait| !wait.is_zero())
            .and_then(|wait| now.checked_add(wait))
        else {
            return Ok(());
        };
        self.flush()?;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.socket.is_cut() || self.stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            std::thread::sleep(left.min(PACE_STEP));
        }
    }

    fn flush(&mut self) -> Result<(), ConnectionError> {
        if self.batch.len() == 0 {
            return Ok(());
        }
        self.tally.settle();
        let sent = self.outbox.send_batch(self.batch.bytes());
        self.batch.clear();
        sent.map_err(ConnectionError::Socket)
    }
}

/// A request on a worker. If it is dropped unanswered, as by a panic, its client must not wait for ever: the connection is cut.
struct Pending {
    request: Request,
    rules: Arc<Rules>,
    outbox: Arc<Outbox>,
    socket: Arc<Socket>,
    credit: Option<Credit>,
    started: Option<Started>,
}

impl Pending {
    fn answer(mut self, outcome: Result<(), IoError>) {
        let mut reply = Vec::with_capacity(64);
        self.rules.put_outcome(&mut reply, &self.request, outcome);
        if let Some(started) = self.started.take() {
            started.answered(outcome.err());
        }
        self.send(reply);
    }

    fn send(mut self, reply: Vec<u8>) {
        if let Some(started) = self.started.take() {
            started.answered(None);
        }
        if let Some(credit) = self.credit.take() {
            self.outbox.push(Reply::new(reply, credit));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.credit.is_some() {
            self.socket.cut();
        }
    }
}
