//! Sends the replies of one connection, which its own thread and several workers produce at the same time.
//!
//! One of them sends at a time and takes along what the others have left meanwhile. The connection's thread may wait for a slow
//! client; a worker never does, as it is shared with other connections: when the socket is full it leaves the rest to a helper
//! thread, which exists only for clients that were slow once.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::credit::Credit;
use super::socket::Socket;

/// Buffers per sendmsg(2); the kernel takes 1024 at most, and beyond a few dozen nothing is gained.
const MAX_PARTS: usize = 64;

/// One whole reply that a worker has made.
#[derive(Debug)]
pub struct Reply {
    bytes: Vec<u8>,
    sent: usize,
    /// Held until the reply is sent, so that a client which takes no answers is asked for no more requests.
    _credit: Credit,
}

impl Reply {
    /// A reply of these bytes.
    pub fn new(bytes: Vec<u8>, credit: Credit) -> Self {
        Self {
            bytes,
            sent: 0,
            _credit: credit,
        }
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }
}

/// The sending side of one connection.
#[derive(Debug)]
pub struct Outbox {
    socket: Arc<Socket>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Reply>,
    /// Somebody is sending, or the helper has been asked to.
    sending: bool,
    /// The helper is asked to send.
    handed_over: bool,
    helper: Option<JoinHandle<()>>,
    closed: bool,
}

impl Outbox {
    /// An outbox for a connected socket.
    pub fn new(socket: Arc<Socket>) -> Arc<Self> {
        Arc::new(Self {
            socket,
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `batch`, whole replies, and what the workers have left. For the connection's own thread: waits for the client.
    ///
    /// # Errors
    /// When the connection is broken; it is cut then.
    pub fn send_batch(&self, batch: &[u8]) -> io::Result<()> {
        self.send_with(|socket| socket.send_all(batch))
    }

    /// The same for a batch whose last reply goes on with `len` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// As [`Outbox::send_batch`].
    pub fn send_batch_and_file(
        &self,
        batch: &[u8],
        file: &File,
        offset: u64,
        len: usize,
    ) -> io::Result<()> {
        self.send_with(|socket| {
            socket.send_all(batch)?;
            socket.send_file(file, offset, len)
        })
    }

    fn send_with(&self, send: impl FnOnce(&Socket) -> io::Result<()>) -> io::Result<()> {
        let state = self.lock();
        let mut state = self
            .changed
            .wait_while(state, |state| state.sending)
            .unwrap_or_else(PoisonError::into_inner);
        state.sending = true;
        drop(state);
        let sent = send(&self.socket);
        if sent.is_err() {
            self.socket.cut();
        }
        self.send_queue(true);
        sent
    }

    /// Sends one reply, or leaves it to whoever is sending. For workers: never waits for the client.
    pub fn push(self: &Arc<Self>, reply: Reply) {
        let mut state = self.lock();
        state.queue.push_back(reply);
        if state.sending {
            return;
        }
        state.sending = true;
        drop(state);
        if self.send_queue(false) {
            return;
        }
        let mut state = self.lock();
        state.handed_over = true;
        if state.helper.is_none() {
            let outbox = Arc::clone(self);
            match std::thread::Builder::new()
                .name("nbd-outbox".into())
                .stack_size(128 << 10)
                .spawn(move || outbox.help())
            {
                Ok(helper) => state.helper = Some(helper),
                Err(error) => {
                    tracing::warn!(%error, "cannot start a thread for a slow client; its connection is cut");
                    drop(state);
                    self.socket.cut();
                    self.send_queue(true);
                    return;
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Sends until the queue is empty, then stops being the one who sends. False: the socket is full, and the caller still is.
    fn send_queue(&self, wait: bool) -> bool {
        let mut taken = VecDeque::new();
        loop {
            let mut state = self.lock();
            // What could not be sent goes first.
            taken.append(&mut state.queue);
            if taken.is_empty() && !self.socket.has_unsent() {
                state.sending = false;
                drop(state);
                self.changed.notify_all();
                return true;
            }
            drop(state);
            match self.send_some(&mut taken, wait) {
                Ok(()) => {}
                Err(error) if !wait && error.kind() == io::ErrorKind::WouldBlock => {
                    let mut state = self.lock();
                    taken.append(&mut state.queue);
                    state.queue = taken;
                    return false;
                }
                Err(_) => {
                    self.socket.cut();
                    taken.clear();
                }
            }
        }
    }

    fn send_some(&self, replies: &mut VecDeque<Reply>, wait: bool) -> io::Result<()> {
        while !replies.is_empty() {
            let parts: Vec<IoSlice<'_>> = replies
                .iter()
                .take(MAX_PARTS)
                .map(|reply| IoSlice::new(reply.rest()))
                .collect();
            let mut sent = self.socket.send(&parts, wait)?;
            while let Some(first) = replies.front_mut() {
                let rest = first.rest().len();
                if sent < rest {
                    first.sent += sent;
                    break;
                }
                sent -= rest;
                replies.pop_front();
            }
        }
        self.socket.flush(wait)
    }

    /// The helper thread.
    fn help(&self) {
        loop {
            let state = self.lock();
            let mut state = self
                .changed
                .wait_while(state, |state| !state.handed_over && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
            if !state.handed_over {
                return;
            }
            state.handed_over = false;
            drop(state);
            self.send_queue(true);
        }
    }

    /// Ends the helper. Replies that come later are still sent, or dropped if the socket is cut.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let helper = state.helper.take();
        drop(state);
        self.changed.notify_all();
        if let Some(helper) = helper {
            // A panic of the helper has been reported on its own thread.
            let _ = helper.join();
        }
    }
}
