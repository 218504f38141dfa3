//! Listens, gives every connection a thread, bounds their number, and stops them all. What is said on a connection is the
//! matter of [`crate::connection`].

mod activation;
mod address;
mod connections;
mod listener;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

pub use activation::inherited_sockets;
pub(crate) use address::is_exposed;
pub use address::{BoundAddress, ListenAddress, ParseAddressError};
pub use listener::ListenError;
pub(crate) use listener::{SocketFile, bind_for_owner};

use crate::access::{Client, Peer};
use crate::connection::{self, ConnectionError, Context, PollSlots, Pool, Socket, Workers};
use crate::export::ExportDirectory;
use crate::limits::Limits;
use crate::policy::Policy;
use connections::{Connections, Entered};
use listener::Listener;

/// After a failed accept (no file descriptors are left, say) the listener waits this long, rather than spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// While the server stops it looks this often which connections have nothing under way any more.
const STOP_STEP: Duration = Duration::from_millis(5);
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

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("limits", &self.context.limits)
            .field("connections", &self.connections.count())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A server that does not listen yet, and lets everybody do everything.
    pub fn new(directory: Arc<dyn ExportDirectory>, limits: Limits) -> Self {
        Self::with_policy(directory, limits, Policy::default())
    }

    /// A server that does not listen yet.
    pub fn with_policy(
        directory: Arc<dyn ExportDirectory>,
        limits: Limits,
        policy: Policy,
    ) -> Self {
        let context = Context {
            directory,
            workers: Workers::new(limits.max_workers),
            poll_slots: PollSlots::for_this_machine(),
            pool: Pool::new(limits.max_in_flight_bytes_in_all),
            limits: Arc::new(limits),
            policy: Arc::new(RwLock::new(Arc::new(policy))),
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

    /// Serves a stream socket that is connected already, one of a pair say, on this thread and to its end. `peer` is whom rules about sockets
    /// take the client for.
    ///
    /// # Errors
    /// Why it ended other than by the client's goodbye, or that there are too many connections.
    pub fn serve_connected(&self, socket: OwnedFd, peer: Peer) -> Result<(), ConnectionError> {
        let socket = Arc::new(Socket::new(socket));
        let entered = self
            .connections
            .enter(&socket, &self.context.limits)
            .ok_or_else(|| ConnectionError::Socket(io::ErrorKind::ConnectionRefused.into()))?;
        serve(socket, peer, &self.context, &entered)
    }

    /// Replaces the policy for connections that come from now on. Those that are open keep the one that they began with.
    /// Returns the one that it was.
    pub fn set_policy(&self, policy: Arc<Policy>) -> Arc<Policy> {
        let mut current = self
            .context
            .policy
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *current, policy)
    }

    /// Counts the open connections, also while the server is not at hand.
    pub(crate) fn connection_counter(&self) -> impl Fn() -> usize + Send + Sync + use<> {
        let connections = Arc::clone(&self.connections);
        move || connections.count()
    }

    /// Connections that are open now.
    pub fn connections(&self) -> usize {
        self.connections.count()
    }

    /// Stops: no further connections are taken, requests under way are answered, those that come meanwhile are refused, and every connection
    /// is closed when nothing is under way on it. What takes longer than [`Limits::shutdown_grace`] is cut. Socket files are removed. To call it again does nothing.
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
        let (grace, linger) = (
            self.context.limits.shutdown_grace,
            self.context.limits.shutdown_linger,
        );
        let start = Instant::now();
        while start.elapsed() < grace {
            self.connections.each(|socket, standing| {
                if standing.may_end(start.elapsed(), linger) {
                    socket.stop_receiving();
                }
            });
            if self.connections.wait_until_none(STOP_STEP) {
                return;
            }
        }
        tracing::warn!("requests are still under way; their connections are cut");
        self.connections.each(|socket, _| socket.cut());
        // A request that storage never answers must not hold up the end of the process.
        self.connections.wait_until_none(grace);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
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
            Ok((fd, peer, name)) => start(fd, peer, name, context, connections),
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

fn start(fd: OwnedFd, peer: Peer, name: String, context: &Context, connections: &Arc<Connections>) {
    let socket = Arc::new(Socket::new(fd));
    let Some(entered) = connections.enter(&socket, &context.limits) else {
        tracing::warn!(
            peer = name,
            limit = context.limits.max_connections,
            "too many connections; one is refused"
        );
        return;
    };
    let context = context.clone();
    let spawned = std::thread::Builder::new()
        .name("nbd-connection".into())
        .stack_size(CONNECTION_STACK)
        .spawn(move || match serve(socket, peer, &context, &entered) {
            Ok(()) => tracing::debug!(peer = name, "a connection has ended"),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::info!(peer = name, %error, cause, "a connection has failed");
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "cannot start a thread for a connection; it is refused");
    }
}

fn serve(
    socket: Arc<Socket>,
    peer: Peer,
    context: &Context,
    entered: &Entered,
) -> Result<(), ConnectionError> {
    let admit = |client: &Client| entered.admit(client, context.limits.max_connections_per_client);
    connection::serve(socket, peer, context, &entered.standing, &admit)
}
