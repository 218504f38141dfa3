//! Carries the gateway's control API, a unix socket, over the network of the hosts, as a user's own tunnel would: from a unix socket on
//! each host that uses it to TCP, and from TCP to the gateway's socket on the storage host.

use std::fs::File;
use std::io;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{Shutdown, shutdown};

use crate::network::{HOSTS, Lan, STORAGE, address};

/// Port over which it goes.
const PORT: u16 = 7071;
/// How long a relay that is over still listens.
const LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Relays between all hosts. They listen no more soon after this is dropped.
#[derive(Debug)]
pub(crate) struct Relays {
    over: Arc<AtomicBool>,
}

/// Where processes of `host` find the control API; `dir` is the working directory.
pub(crate) fn socket(dir: &Path, host: &str) -> PathBuf {
    dir.join(format!("control-{host}.sock"))
}

impl Relays {
    /// From [`socket`] on each host to the gateway's `control`.
    pub(crate) fn start(lan: &Lan, control: &Path, dir: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let storage = SocketAddrV4::new(address(STORAGE), PORT);
        lan.on(STORAGE, || {
            let listener = TcpListener::bind(storage).expect("the port is free");
            let control = control.to_owned();
            listen(listener, &over, move |listener| {
                let (caller, _) = listener.accept()?;
                caller.set_nodelay(true)?;
                Ok((caller.into(), UnixStream::connect(&control)?.into()))
            });
        });
        for host in HOSTS {
            lan.on(host, || {
                let listener = UnixListener::bind(socket(dir, host)).expect("it is not there");
                listen(listener, &over, move |listener| {
                    let (caller, _) = listener.accept()?;
                    let called = TcpStream::connect(storage)?;
                    called.set_nodelay(true)?;
                    Ok((caller.into(), called.into()))
                });
            });
        }
        Self { over }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Listens on a thread, which is on the host of this one, and connects those who `meet`.
fn listen<L: AsFd + Send + 'static>(
    listener: L,
    over: &Arc<AtomicBool>,
    meet: impl Fn(&L) -> io::Result<(OwnedFd, OwnedFd)> + Send + 'static,
) {
    let over = Arc::clone(over);
    std::thread::spawn(move || {
        while !over.load(Ordering::Relaxed) {
            let mut listening = [PollFd::new(&listener, PollFlags::IN)];
            // An error is an interruption; who can't be connected sees a closed connection.
            if poll(&mut listening, Some(&LOOK)).is_ok_and(|ready| ready > 0)
                && let Ok((one, other)) = meet(&listener)
            {
                carry(one, other);
            }
        }
    });
}

/// Copies both ways until both have ended. What one side closes is closed on the other.
fn carry(one: OwnedFd, other: OwnedFd) {
    let (one, other) = (Arc::new(File::from(one)), Arc::new(File::from(other)));
    for (from, to) in [(Arc::clone(&one), Arc::clone(&other)), (other, one)] {
        std::thread::spawn(move || {
            let _ = io::copy(&mut &*from, &mut &*to);
            let _ = shutdown(&*to, Shutdown::Write);
        });
    }
}
