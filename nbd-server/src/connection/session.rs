//! The transmission phase of one connection: takes requests off the socket, answers in place or through a worker.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

use super::batch::Batch;
use super::credit::{Credit, Credits};
use super::handshake::Attachment;
use super::outbox::{Outbox, Reply};
use super::receive_buffer::ReceiveBuffer;
use super::socket::Socket;
use super::workers::Lane;
use super::{ConnectionError, Context, payload};
use crate::export::{Export, IoError};
use crate::protocol;
use crate::transmission::{Operation, Request, Rules};

/// Payloads above this are received into their own buffer; below, a copy out of the receive buffer costs less than a system call.
const DIRECT_PAYLOAD: usize = 64 << 10;
/// Reads above this go to a worker at once: copying them would hold up everything behind them.
const MAX_INLINE_READ: usize = 1 << 20;
/// Answers of a batch are sent when they have grown to this, so that the client works on them while the batch goes on.
const MAX_BATCH: usize = 256 << 10;

/// One attached connection.
pub(super) struct Session {
    socket: Arc<Socket>,
    export: Arc<dyn Export>,
    rules: Arc<Rules>,
    outbox: Arc<Outbox>,
    credits: Arc<Credits>,
    lane: Arc<Lane>,
    stopping: Arc<AtomicBool>,
    /// Answers made in place and not yet sent.
    batch: Batch,
}

enum Flow {
    Continue,
    Disconnect,
}

impl Session {
    pub(super) fn new(socket: Arc<Socket>, context: &Context, attachment: Attachment) -> Self {
        let limits = &context.limits;
        Self {
            export: attachment.export,
            rules: Arc::new(attachment.rules),
            outbox: Outbox::new(Arc::clone(&socket)),
            credits: Credits::new(limits.max_in_flight, limits.max_in_flight_bytes),
            lane: Lane::new(
                Arc::clone(&context.workers),
                limits.max_workers_per_connection,
            ),
            stopping: Arc::clone(&context.stopping),
            batch: Batch::default(),
            socket,
        }
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
            if let Flow::Disconnect = self.serve_batch(input)? {
                return Ok(());
            }
            self.flush()?;
            if self.stopping.load(Ordering::Acquire) || self.socket.is_cut() {
                return Ok(());
            }
            match input.fill(&self.socket) {
                Ok(0) if input.filled().is_empty() => return Ok(()),
                Ok(0) => return Err(ConnectionError::Socket(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) => return Err(ConnectionError::Socket(error)),
            }
        }
    }

    /// Takes every request that is complete in `input`, and a last one whose large payload is still to come.
    fn serve_batch(&mut self, input: &mut ReceiveBuffer) -> Result<Flow, ConnectionError> {
        while let Some(request) = Request::parse(input.filled())? {
            let payload_len = request.payload_len() as usize;
            let whole = protocol::REQUEST_LEN + payload_len;
            let complete = input.filled().len() >= whole;
            if !complete && payload_len > 0 && payload_len <= DIRECT_PAYLOAD {
                break;
            }
            match self.rules.check(&request) {
                Err(error) => {
                    input.consume(protocol::REQUEST_LEN);
                    self.discard(input, payload_len)?;
                    self.batch.put_outcome(&self.rules, &request, Err(error));
                }
                Ok(Operation::Disconnect) => return Ok(Flow::Disconnect),
                Ok(Operation::Write { offset, fua, .. }) => {
                    input.consume(protocol::REQUEST_LEN);
                    if complete && payload_len <= DIRECT_PAYLOAD {
                        let held = input.filled().get(..payload_len).unwrap_or_default();
                        let data = Bytes::copy_from_slice(held);
                        input.consume(payload_len);
                        self.write(request, offset, data, fua, None)?;
                    } else {
                        let (data, credit) = self.receive_payload(input, payload_len)?;
                        self.write(request, offset, data, fua, Some(credit))?;
                    }
                }
                Ok(operation) => {
                    input.consume(protocol::REQUEST_LEN);
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

    fn write(
        &mut self,
        request: Request,
        offset: u64,
        data: Bytes,
        fua: bool,
        credit: Option<Credit>,
    ) -> Result<(), ConnectionError> {
        let outcome = match self.export.try_write(offset, &data, fua) {
            Ok(true) => Ok(()),
            Err(error) => Err(error),
            Ok(false) => {
                let credit = match credit {
                    Some(credit) => credit,
                    None => self.take_credit(data.len())?,
                };
                self.submit(request, credit, move |export| {
                    export.write(offset, data, fua)
                });
                return Ok(());
            }
        };
        self.batch.put_outcome(&self.rules, &request, outcome);
        Ok(())
    }

    /// Everything but WRITE, whose payload the caller has to take, and DISC.
    fn dispatch(&mut self, request: Request, operation: Operation) -> Result<(), ConnectionError> {
        if let Operation::Read { offset, len } = operation {
            return self.read(request, offset, len);
        }
        if operation == Operation::Nothing {
            self.batch.put_outcome(&self.rules, &request, Ok(()));
            return Ok(());
        }
        let credit = self.take_credit(0)?;
        self.submit(request, credit, move |export| match operation {
            Operation::Flush => export.flush(),
            Operation::Trim { offset, len, fua } => export.trim(offset, len.into(), fua),
            Operation::WriteZeroes {
                offset,
                len,
                may_trim,
                fast,
                fua,
            } => export.write_zeroes(offset, len.into(), may_trim, fast, fua),
            Operation::Read { .. }
            | Operation::Write { .. }
            | Operation::Nothing
            | Operation::Disconnect => Err(IoError::Inval),
        });
        Ok(())
    }

    fn read(&mut self, request: Request, offset: u64, len: u32) -> Result<(), ConnectionError> {
        let size = len as usize;
        let head = self.rules.read_head_len();
        if size <= MAX_INLINE_READ {
            if self.batch.len() + head + size > MAX_BATCH {
                self.flush()?;
            }
            let (reply_head, data) = self.batch.room(head + size).split_at_mut(head);
            match self.export.try_read(offset, data) {
                Ok(true) => {
                    self.rules
                        .put_read_head(reply_head, request.cookie, offset, len);
                    self.batch.keep(head + size);
                    return Ok(());
                }
                Ok(false) => {}
                Err(error) => {
                    self.batch.put_outcome(&self.rules, &request, Err(error));
                    return Ok(());
                }
            }
        }
        let credit = self.take_credit(size)?;
        let pending = self.pending(request, credit);
        let export = Arc::clone(&self.export);
        self.lane.submit(move || {
            let mut reply = vec![0; head + size];
            let (reply_head, data) = reply.split_at_mut(head);
            let outcome = export.read(offset, data);
            drop(export);
            match outcome {
                Ok(()) => {
                    pending
                        .rules
                        .put_read_head(reply_head, request.cookie, offset, len);
                    pending.send(reply);
                }
                Err(error) => pending.answer(Err(error)),
            }
        });
        Ok(())
    }

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
        }
    }

    /// Credit for a request that leaves this thread. Before it waits, the client gets all answers there are: it may be those that
    /// it waits for.
    fn take_credit(&mut self, bytes: usize) -> Result<Credit, ConnectionError> {
        if let Some(credit) = self.credits.try_take(bytes) {
            return Ok(credit);
        }
        self.flush()?;
        Ok(self.credits.take(bytes))
    }

    fn flush(&mut self) -> Result<(), ConnectionError> {
        if self.batch.len() == 0 {
            return Ok(());
        }
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
}

impl Pending {
    fn answer(self, outcome: Result<(), IoError>) {
        let mut reply = Vec::with_capacity(64);
        self.rules.put_outcome(&mut reply, &self.request, outcome);
        self.send(reply);
    }

    fn send(mut self, reply: Vec<u8>) {
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
