//! Waits for the next request of a client that asks for one thing at a time: for a moment by polling, so that neither side has to be woken,
//! which takes longer than most requests. It knows nothing of what is received.
//!
//! Polling is bounded four ways: in time ([`WINDOW`]), to clients whose last requests came sooner than that, to half of the
//! machine's cores over all connections, and to times when no more connections than that are busy: where clients have to share the
//! cores, whoever polls takes away what another needs to work.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::receive_buffer::ReceiveBuffer;
use super::socket::Socket;

/// Longest time to poll for one request. To wake a thread on a core that sleeps takes 5 to 50 µs, in a virtual machine more, and a client
/// that is woken by the last answer needs one such time before it asks again.
pub const WINDOW: Duration = Duration::from_micros(200);
/// Requests in a row that have to come within the window before polling begins.
const TRUST: u32 = 4;
/// Looks at the socket between two looks at the clock.
const LOOKS: u32 = 8;

/// A connection counts as busy for as long as the tick in which it received something, and the next one.
const TICK: Duration = Duration::from_millis(10);

/// How many connections may poll at once.
#[derive(Debug)]
pub struct PollSlots {
    slots: usize,
    free: AtomicUsize,
    crowd: Crowd,
}

impl PollSlots {
    /// One slot for every two cores; a machine with one core never polls.
    pub fn for_this_machine() -> Arc<Self> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(cores / 2)
    }

    /// So many slots.
    pub fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            slots,
            free: AtomicUsize::new(slots),
            crowd: Crowd::new(),
        })
    }

    fn take(&self) -> Option<Slot<'_>> {
        if self.crowd.size() > self.slots {
            return None;
        }
        self.free
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
                free.checked_sub(1)
            })
            .is_ok()
            .then_some(Slot(self))
    }
}

struct Slot<'a>(&'a PollSlots);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many connections are busy.
#[derive(Debug)]
struct Crowd {
    start: Instant,
    size: AtomicUsize,
    ticks: Mutex<Ticks>,
}

#[derive(Debug, Default)]
struct Ticks {
    /// The tick that is counted now.
    tick: u64,
    /// Connections seen in it, and in the one before.
    now: usize,
    before: usize,
}

impl Crowd {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            size: AtomicUsize::new(0),
            ticks: Mutex::default(),
        }
    }

    /// Number of the tick at `time`.
    fn tick(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos() / TICK.as_nanos()).unwrap_or(u64::MAX)
    }

    /// A connection is busy in `tick`. Each says so once per tick.
    fn join(&self, tick: u64) {
        let mut ticks = self.ticks.lock().unwrap_or_else(PoisonError::into_inner);
        if tick > ticks.tick {
            ticks.before = if tick == ticks.tick + 1 { ticks.now } else { 0 };
            ticks.now = 0;
            ticks.tick = tick;
        }
        ticks.now += 1;
        self.size
            .store(ticks.now.max(ticks.before), Ordering::Relaxed);
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }
}

/// What one connection has learnt about its client.
#[derive(Debug)]
pub struct Poller {
    slots: Arc<PollSlots>,
    /// The last tick in which this connection was counted as busy.
    tick: u64,
    /// Requests in a row that came within the window.
    prompt: u32,
}

impl Poller {
    /// A connection that has learnt nothing yet.
    pub fn new(slots: &Arc<PollSlots>) -> Self {
        Self {
            slots: Arc::clone(slots),
            tick: 0,
            prompt: 0,
        }
    }

    /// Receives into `input` as [`ReceiveBuffer::fill`] does. `deep`: the client had several requests under way; then it is
    /// better to sleep while more of them gather.
    ///
    /// # Errors
    /// As [`ReceiveBuffer::fill`].
    pub fn fill(
        &mut self,
        input: &mut ReceiveBuffer,
        socket: &Socket,
        deep: bool,
    ) -> io::Result<usize> {
        let start = Instant::now();
        let tick = self.slots.crowd.tick(start);
        if tick != self.tick {
            self.tick = tick;
            self.slots.crowd.join(tick);
        }
        // Under TLS the cost of a request is not in the waiting.
        if deep || !socket.is_clear() {
            return input.fill(socket);
        }
        if self.prompt >= TRUST
            && let Some(_slot) = self.slots.take()
        {
            while start.elapsed() < WINDOW {
                for _ in 0..LOOKS {
                    if let Some(received) = input.try_fill(socket)? {
                        return Ok(received);
                    }
                    std::hint::spin_loop();
                }
            }
            self.prompt = 0;
        }
        let received = input.fill(socket);
        self.prompt = if start.elapsed() < WINDOW {
            self.prompt.saturating_add(1)
        } else {
            0
        };
        received
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_and_run_out() {
        let slots = PollSlots::new(1);
        let taken = slots.take();
        assert!(taken.is_some());
        assert!(slots.take().is_none());
        drop(taken);
        assert!(slots.take().is_some());
        assert!(PollSlots::new(0).take().is_none());
    }

    #[test]
    fn nobody_polls_while_more_are_busy_than_there_are_slots() {
        let slots = PollSlots::new(2);
        let busy = |tick, connections| (0..connections).for_each(|_| slots.crowd.join(tick));
        busy(5, 2);
        assert!(slots.take().is_some());
        busy(6, 3);
        assert!(slots.take().is_none());
        // One tick later it is not known yet whether the third is gone; then it is.
        busy(7, 2);
        assert!(slots.take().is_none());
        busy(8, 2);
        assert!(slots.take().is_some());
        // After a rest nothing is left of earlier crowds.
        busy(9, 9);
        busy(20, 1);
        assert!(slots.take().is_some());
    }
}
