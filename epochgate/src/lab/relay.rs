//! Carries the control API, a unix socket, over the network of a site: unix to TCP on the hosts that use it, TCP to unix on the
//! storage host. What is cut between the hosts is cut for the control API, too.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::namespaces::Place;
use super::network::{Host, Network};

/// Port over which the control API is relayed.
const CONTROL_PORT: u16 = 7071;

/// Where processes of `host` find the control API; `dir` is the working directory.
pub(super) fn socket(dir: &Path, host: Host) -> PathBuf {
    dir.join(format!("control-{host:?}.sock").to_lowercase())
}

/// Carries the control API of `control`, the gateway's own socket, to the [`socket`] of each host that uses it.
pub(super) fn of_control(
    network: &Network,
    control: PathBuf,
    dir: &Path,
) -> anyhow::Result<[Relay; 3]> {
    let address = format!("{}:{CONTROL_PORT}", Host::Storage.address());
    let caller = |host: Host| {
        let end = End::Caller(socket(dir, host), address.clone());
        Relay::start(network.place(host).clone(), end)
    };
    let called = End::Called(address.clone(), control);
    Ok([
        Relay::start(network.place(Host::Storage).clone(), called)?,
        caller(Host::Source)?,
        caller(Host::Standby)?,
    ])
}

/// A running relay. Dropping it closes all its connections.
#[derive(Debug)]
pub(crate) struct Relay {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    over: AtomicBool,
    /// Readable when it is over: wakes the thread that listens.
    wake: OwnedFd,
    open: Mutex<Vec<(TcpStream, UnixStream)>>,
}

/// Which end a relay is.
#[derive(Debug, Clone)]
enum End {
    /// Listens on the unix socket and connects to the address.
    Caller(PathBuf, String),
    /// Listens on the address and connects to the unix socket.
    Called(String, PathBuf),
}

impl Relay {
    /// Starts it in `place`; it accepts when this returns.
    fn start(place: Place, end: End) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            over: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
            open: Mutex::default(),
        });
        let (ready, started) = mpsc::channel();
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let listening = place
                .enter_now()
                .map_err(std::io::Error::from)
                .and_then(|()| Listening::new(&end));
            match listening {
                Ok(listening) => {
                    let _ = ready.send(Ok(()));
                    serve(&listening, &end, &for_thread);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        });
        let started = started.recv().context("the relay ended early")?;
        started.context("the relay of the control API can't listen")?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // Eight bytes into a counter at zero: that can't fail.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        for (tcp, unix) in self.shared.open().drain(..) {
            let _ = tcp.shutdown(Shutdown::Both);
            let _ = unix.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, Vec<(TcpStream, UnixStream)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Listening {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listening {
    fn new(end: &End) -> std::io::Result<Self> {
        match end {
            End::Caller(path, _) => UnixListener::bind(path).map(Self::Unix),
            End::Called(address, _) => TcpListener::bind(address).map(Self::Tcp),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener) => listener.as_fd(),
            Self::Tcp(listener) => listener.as_fd(),
        }
    }
}

fn serve(listening: &Listening, end: &End, shared: &Arc<Shared>) {
    while !shared.over.load(Ordering::Relaxed) {
        let mut fds = [
            PollFd::from_borrowed_fd(listening.fd(), PollFlags::IN),
            PollFd::new(&shared.wake, PollFlags::IN),
        ];
        if poll(&mut fds, None).is_err() || fds[0].revents().is_empty() {
            continue;
        }
        match listening {
            Listening::Unix(listener) => {
                if let (Ok((unix, _)), End::Caller(_, address)) = (listener.accept(), end) {
                    let (address, shared) = (address.clone(), Arc::clone(shared));
                    // Connecting takes as long as the network is cut.
                    std::thread::spawn(move || {
                        let address = address.parse().ok();
                        let tcp = address.and_then(|a| {
                            TcpStream::connect_timeout(&a, Duration::from_secs(10)).ok()
                        });
                        if let Some(tcp) = tcp {
                            join(tcp, unix, &shared);
                        }
                    });
                }
            }
            Listening::Tcp(listener) => {
                if let (Ok((tcp, _)), End::Called(_, path)) = (listener.accept(), end)
                    && let Ok(unix) = UnixStream::connect(path)
                {
                    join(tcp, unix, shared);
                }
            }
        }
    }
}

/// Copies both ways until both have ended. What one side closes is closed on the other.
fn join(tcp: TcpStream, unix: UnixStream, shared: &Arc<Shared>) {
    let _ = tcp.set_nodelay(true);
    let clones = (tcp.try_clone(), unix.try_clone());
    let (Ok(tcp_too), Ok(unix_too)) = clones else {
        return;
    };
    if let (Ok(a), Ok(b)) = (tcp.try_clone(), unix.try_clone()) {
        shared.open().push((a, b));
    }
    if shared.over.load(Ordering::Relaxed) {
        return;
    }
    std::thread::spawn(move || {
        copy(&tcp, &unix);
        let _ = unix.shutdown(Shutdown::Write);
    });
    std::thread::spawn(move || {
        copy(&unix_too, &tcp_too);
        let _ = tcp_too.shutdown(Shutdown::Write);
    });
}

fn copy(mut from: impl Read, mut to: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) if to.write_all(&buffer[..n]).is_err() => return,
            Ok(_) => {}
        }
    }
}
