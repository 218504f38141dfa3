//! Listens, gives every connection a thread, bounds their number, and stops them all. What is said on a connection is the
//! matter of [`crate::connection`].

mod address;
mod listener;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

pub use address::{BoundAddress, ListenAddress, ParseAddressError};
pub use listener::ListenError;
pub(crate) use listener::{SocketFile, bind_for_owner};

use crate::connection::{self, Context, Socket, Workers};
use crate::export::ExportDirectory;
use crate::limits::Limits;
use listener::Listener;

/// After a failed accept (no file descriptors are left, say) the listener waits this long, rather than spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Stack of a connection's thread; buffers live on the heap.
const CONNECTION_STACK: usize = 512 << 10;

/// Serves the exports of one directory on any number of addresses.
pub struct Server {
    context: Context,
    connections: Arc<Connections>,
    listeners: Mutex<Vec<Listening>>,
}

struct Listening {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// The connections that are open.
#[derive(Default)]
struct Connections {
    open: Mutex<Open>,
    ended: Condvar,
}

#[derive(Default)]
struct Open {
    next: u64,
    sockets: HashMap<u64, Weak<Socket>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.context.limits)
            .field("connections", &self.connections.lock().sockets.len())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A server that does not listen yet.
    pub fn new(directory: Arc<dyn ExportDirectory>, limits: Limits) -> Self {
        let context = Context {
            directory,
            workers: Workers::new(limits.max_workers),
            limits: Arc::new(limits),
            stopping: Arc::new(AtomicBool::new(false)),
        };
        Self {
            context,
            connections: Arc::default(),
            listeners: Mutex::default(),
        }
    }

    /// Listens on one more address, and returns it as it is bound (with the port that the system chose, say).
    ///
    /// # Errors
    /// When the address can't be listened on, with what to do about it.
    pub fn listen(&self, address: &ListenAddress) -> Result<BoundAddress, ListenError> {
        let listener = Listener::bind(address)?;
        let bound = listener.address().clone();
        let system = |source| ListenError::System {
            address: bound.to_string(),
            source,
        };
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| system(e.into()))?);
        let (context, connections) = (self.context.clone(), Arc::clone(&self.connections));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("nbd-listener".into())
            .spawn(move || accept(&listener, &stopped, &context, &connections))
            .map_err(system)?;
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.push(Listening { stop, thread });
        tracing::info!(address = %bound, "listening");
        Ok(bound)
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.lock().sockets.len()
    }

    /// Stops: no further connections or requests are taken, requests under way are answered, and every connection is closed. What takes
    /// longer than [`Limits::shutdown_grace`] is cut. Socket files are removed. To call it again does nothing.
    pub fn shutdown(&self) {
        self.context.stopping.store(true, Ordering::Release);
        let listeners: Vec<Listening> = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
            .collect();
        for listening in listeners {
            // An eventfd takes a write unless its count overflows.
            let _ = rustix::io::write(&listening.stop, &1u64.to_ne_bytes());
            // A panic of the listener has been reported on its own thread.
            let _ = listening.thread.join();
        }
        self.connections.each(Socket::stop_receiving);
        let grace = self.context.limits.shutdown_grace;
        if !self.connections.wait_until_none(grace) {
            tracing::warn!("requests are still under way; their connections are cut");
            self.connections.each(Socket::cut);
            // A request that storage never answers must not hold up the end of the process.
            self.connections.wait_until_none(grace);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection, unless there are `max` already.
    fn enter(self: &Arc<Self>, socket: &Arc<Socket>, max: usize) -> Option<Entered> {
        let mut open = self.lock();
        if open.sockets.len() >= max {
            return None;
        }
        let id = open.next;
        open.next += 1;
        open.sockets.insert(id, Arc::downgrade(socket));
        Some(Entered {
            connections: Arc::clone(self),
            id,
        })
    }

    fn each(&self, act: impl Fn(&Socket)) {
        for socket in self.lock().sockets.values().filter_map(Weak::upgrade) {
            act(&socket);
        }
    }

    fn wait_until_none(&self, limit: Duration) -> bool {
        let open = self.lock();
        let (open, _) = self
            .ended
            .wait_timeout_while(open, limit, |open| !open.sockets.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        open.sockets.is_empty()
    }
}

/// A connection's place among those that are open; dropped when its thread ends, however it ends.
struct Entered {
    connections: Arc<Connections>,
    id: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.connections.lock().sockets.remove(&self.id);
        self.connections.ended.notify_all();
    }
}

fn accept(listener: &Listener, stop: &OwnedFd, context: &Context, connections: &Arc<Connections>) {
    loop {
        let mut waiting = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        match poll(&mut waiting, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(address = %listener.address(), %error, "cannot wait for connections; the listener ends");
                return;
            }
        }
        let [stopped, _] = waiting;
        if !stopped.revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((fd, peer)) => start(fd, peer, context, connections),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(address = %listener.address(), %error, "cannot accept a connection");
                let pause = Timespec {
                    tv_sec: 0,
                    tv_nsec: ACCEPT_PAUSE.subsec_nanos().into(),
                };
                // Whether it ends by the stop or by time makes no difference here.
                let _ = poll(&mut [PollFd::new(stop, PollFlags::IN)], Some(&pause));
            }
        }
    }
}

fn start(fd: OwnedFd, peer: String, context: &Context, connections: &Arc<Connections>) {
    let socket = Arc::new(Socket::new(fd));
    let Some(entered) = connections.enter(&socket, context.limits.max_connections) else {
        tracing::warn!(%peer, limit = context.limits.max_connections, "too many connections; one is refused");
        return;
    };
    let context = context.clone();
    let spawned = std::thread::Builder::new()
        .name("nbd-connection".into())
        .stack_size(CONNECTION_STACK)
        .spawn(move || {
            let _entered = entered;
            match connection::serve(socket, &context) {
                Ok(()) => tracing::debug!(%peer, "a connection has ended"),
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::info!(%peer, %error, cause, "a connection has failed");
                }
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a connection; it is refused");
    }
}
