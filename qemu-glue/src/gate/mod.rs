//! The output gate: holds what the guest sends until it is told that it may leave. Knows no epochs and no commit: it
//! makes *cuts*, and lets everything before a cut leave.
//!
//! QEMU's `filter-redirector` on the user's own netdev hands each packet of the guest to a unix socket and puts what it
//! reads from another one on its way to the network ([`attach`]). Packets to the guest don't come here. A thread of the
//! gate always reads, whatever may leave: QEMU writes packets from its main loop, which would stand still, QMP and
//! all, if nobody read.
//!
//! The cut is exact: `stop` has run in the same main loop that writes the packets, so when it is answered all that the
//! guest sent before lies in the socket, and [`OutputGate::cut`] reads until there is no more.
//!
//! What is not told to leave is gone with the gate: dropped like any packet on a network.

mod attach;
mod lane;
mod netdevs;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tokio::sync::watch;

pub(crate) use attach::attach;
use lane::Lane;
pub(crate) use netdevs::{gated, netdev_id};

/// Bytes that are read at once.
const READ: usize = 128 << 10;

/// A place in what the guest has sent: before it is what was sent before [`OutputGate::cut`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    number: u64,
    packets: u64,
}

impl Cut {
    /// Packets of the guest before it, of all interfaces, since the gate was attached; dropped ones left out.
    pub fn packets(self) -> u64 {
        self.packets
    }
}

/// How much waits in the gate, as far as it matters to whoever decides on the next cut.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backlog {
    /// Nothing since the last cut.
    #[default]
    Empty,
    /// The guest has sent something since the last cut: somebody outside may wait for it.
    Waiting,
    /// Half of the limit is reached; at the limit packets are dropped. A cut, and the release of what is before it, helps.
    Pressing,
}

/// What passed through and what did not. Bytes count frames as QEMU hands them over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateCounts {
    /// Packets that came, dropped ones left out.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets dropped at the limit.
    pub dropped: u64,
    /// Bytes that wait now.
    pub held_bytes: u64,
}

/// A change that the owner of a gate should know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateState {
    /// What waits.
    pub backlog: Backlog,
    /// Packets dropped at the limit so far.
    pub dropped: u64,
    /// Why the gate does not work any more; then nothing leaves. QEMU has closed it, or somebody has removed its devices.
    pub broken: Option<String>,
}

/// The gate of one VM, in front of all of its network interfaces. Clones are the same gate; the last one takes it down, and with it
/// what it holds.
#[derive(Debug, Clone)]
pub struct OutputGate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    sockets: Vec<Sockets>,
    held: Mutex<Held>,
    wake: OwnedFd,
    state: watch::Sender<GateState>,
}

/// The sockets of one interface.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// What the guest sends, from QEMU.
    pub(crate) outgoing: UnixStream,
    /// What goes on to the network, to QEMU.
    pub(crate) released: UnixStream,
}

#[derive(Debug)]
struct Held {
    /// One for each interface, in the order of the sockets.
    lanes: Vec<Lane>,
    /// Packets leave at once.
    passing: bool,
    cuts: u64,
    /// Cuts that are not released, and where they are in each lane.
    marks: VecDeque<(Cut, Vec<u64>)>,
    /// Where the last cut was.
    last: Vec<u64>,
    limit: u64,
    /// Where bytes from a socket land first.
    landing: Box<[u8]>,
    broken: Option<String>,
    closed: bool,
}

impl OutputGate {
    /// A gate behind these sockets that holds at most `limit` bytes of each interface. It passes everything until
    /// [`OutputGate::hold`].
    pub(crate) fn start(sockets: Vec<Sockets>, limit: u64) -> io::Result<Self> {
        for one in &sockets {
            one.outgoing.set_nonblocking(true)?;
            one.released.set_nonblocking(true)?;
        }
        let lanes: Vec<Lane> = sockets.iter().map(|_| Lane::new(limit)).collect();
        let shared = Arc::new(Shared {
            sockets,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            state: watch::Sender::default(),
            held: Mutex::new(Held {
                last: vec![0; lanes.len()],
                lanes,
                passing: true,
                cuts: 0,
                marks: VecDeque::new(),
                limit,
                landing: vec![0; READ].into_boxed_slice(),
                broken: None,
                closed: false,
            }),
        });
        let thread = if shared.sockets.is_empty() {
            None
        } else {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("output-gate".to_owned());
            Some(thread.spawn(move || shared.run())?)
        };
        Ok(Self {
            inner: Arc::new(Inner { shared, thread }),
        })
    }

    fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// From now on nothing leaves that is not released.
    pub fn hold(&self) {
        self.shared().change(|held, _| held.passing = false);
    }

    /// Lets everything leave, now and from now on.
    pub fn pass(&self) {
        self.shared().change(|held, _| {
            held.passing = true;
            held.marks.clear();
        });
    }

    /// Makes a cut behind everything that the guest has sent. To be called while the guest is stopped; it takes some ten
    /// microseconds.
    pub fn cut(&self) -> Cut {
        let mut cut = Cut {
            number: 0,
            packets: 0,
        };
        self.shared().change(|held, sockets| {
            for index in 0..sockets.len() {
                while held.receive(index, sockets) {}
            }
            held.cuts += 1;
            cut = Cut {
                number: held.cuts,
                packets: held.lanes.iter().map(Lane::packets).sum(),
            };
            held.last = held.lanes.iter().map(Lane::whole).collect();
            held.marks.push_back((cut, held.last.clone()));
        });
        cut
    }

    /// Lets everything before `cut` leave, in order.
    pub fn release(&self, cut: Cut) {
        self.shared().change(|held, _| {
            while let Some((mark, _)) = held.marks.front()
                && mark.number <= cut.number
                && let Some((_, positions)) = held.marks.pop_front()
            {
                for (lane, position) in held.lanes.iter_mut().zip(positions) {
                    lane.free(position);
                }
            }
        });
    }

    /// Drops what waits and lets nothing leave any more: the VM is not ours.
    pub fn close(&self) {
        self.shared().close();
    }

    /// Counts up to now.
    pub fn counts(&self) -> GateCounts {
        let held = self.shared().lock();
        let sum = |count: fn(&Lane) -> u64| held.lanes.iter().map(count).sum();
        GateCounts {
            packets: sum(Lane::packets),
            bytes: sum(Lane::bytes),
            dropped: sum(Lane::dropped),
            held_bytes: sum(Lane::held),
        }
    }

    /// Its state, and each change of it.
    pub fn subscribe(&self) -> watch::Receiver<GateState> {
        self.shared().state.subscribe()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.close();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread: there is more to write, or nothing to do any more.
    fn wake(&self) {
        // A counter that is full has woken it already.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn close(&self) {
        self.lock().closed = true;
        self.wake();
    }

    /// Changes what is held, writes what may leave then, and tells what has become of it.
    fn change(&self, change: impl FnOnce(&mut Held, &[Sockets])) {
        let mut held = self.lock();
        if held.closed || held.broken.is_some() {
            return;
        }
        change(&mut held, &self.sockets);
        let settled = held.send(&self.sockets);
        self.tell(&held);
        drop(held);
        if !settled {
            self.wake();
        }
    }

    fn tell(&self, held: &Held) {
        let state = held.state();
        self.state.send_if_modified(|last| {
            let differs = *last != state;
            if differs {
                *last = state;
            }
            differs
        });
    }

    /// Reads and writes until the gate is closed or broken.
    fn run(&self) {
        // Which lanes have something that QEMU does not take now.
        let mut stuck = vec![false; self.sockets.len()];
        loop {
            let ready = match self.wait(&stuck) {
                Ok(ready) => ready,
                Err(error) => {
                    let mut held = self.lock();
                    held.fail(format!("waiting for packets failed: {error}"));
                    self.tell(&held);
                    return;
                }
            };
            let mut held = self.lock();
            if held.closed {
                return;
            }
            for index in ready {
                held.receive(index, &self.sockets);
            }
            held.send(&self.sockets);
            for (stuck, lane) in stuck.iter_mut().zip(&held.lanes) {
                *stuck = !lane.is_settled();
            }
            self.tell(&held);
            if held.broken.is_some() {
                return;
            }
        }
    }

    /// Waits until there is something to do; says from which interfaces something came.
    fn wait(&self, stuck: &[bool]) -> io::Result<Vec<usize>> {
        let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
        for (sockets, stuck) in self.sockets.iter().zip(stuck) {
            polled.push(PollFd::new(&sockets.outgoing, PollFlags::IN));
            if *stuck {
                polled.push(PollFd::new(&sockets.released, PollFlags::OUT));
            }
        }
        rustix::io::retry_on_intr(|| poll(&mut polled, None))?;
        let woken: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        drop(polled);
        let mut ready = Vec::new();
        let mut at = 1;
        for (index, stuck) in stuck.iter().enumerate() {
            if woken.get(at).copied().unwrap_or(false) {
                ready.push(index);
            }
            at += 1 + usize::from(*stuck);
        }
        if woken.first().copied().unwrap_or(false) {
            // Only its being there matters.
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        }
        Ok(ready)
    }
}

impl Held {
    /// Takes one read's worth from an interface. Says whether there may be more.
    fn receive(&mut self, index: usize, sockets: &[Sockets]) -> bool {
        let (Some(lane), Some(socket)) = (self.lanes.get_mut(index), sockets.get(index)) else {
            return false;
        };
        if self.broken.is_some() {
            return false;
        }
        let problem = match (&socket.outgoing).read(&mut self.landing) {
            Ok(0) => "QEMU has closed it".to_owned(),
            Ok(count) => match lane.take(&self.landing[..count]) {
                Ok(()) => return true,
                Err(bad) => bad.to_string(),
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return true,
            Err(error) => error.to_string(),
        };
        self.fail(problem);
        false
    }

    /// Writes what may leave. Says whether QEMU took all of it.
    fn send(&mut self, sockets: &[Sockets]) -> bool {
        if self.broken.is_some() {
            return true;
        }
        let mut settled = true;
        let mut problem = None;
        for (lane, socket) in self.lanes.iter_mut().zip(sockets) {
            if self.passing {
                lane.free(lane.whole());
            }
            match lane.leave(|slices| (&socket.released).write_vectored(slices)) {
                Ok(all) => settled &= all,
                Err(error) => problem = Some(error.to_string()),
            }
        }
        if let Some(problem) = problem {
            self.fail(problem);
        }
        settled
    }

    fn fail(&mut self, problem: String) {
        self.broken.get_or_insert(problem);
    }

    fn state(&self) -> GateState {
        let pressing = |lane: &Lane| lane.held() >= self.limit / 2;
        let mut lanes = self.lanes.iter().zip(&self.last);
        let backlog = if self.passing {
            Backlog::Empty
        } else if self.lanes.iter().any(pressing) {
            Backlog::Pressing
        } else if lanes.any(|(lane, last)| lane.whole() > *last) {
            Backlog::Waiting
        } else {
            Backlog::Empty
        };
        GateState {
            backlog,
            dropped: self.lanes.iter().map(Lane::dropped).sum(),
            broken: self.broken.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
