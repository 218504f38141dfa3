//! What the witness says, one short line each, made for programs that read the serial line:
//!
//! ```text
//! WITNESS run=9f.. disks=2 blocks=4096,4096 writers=2 rate=400 mem_mib=8 seed=1      once, at the start
//! W seq=123 up=12.34 run=9f.. writes=.. flushes=.. zeros=.. discards=.. reads=.. checked=.. mismatches=0
//!   io_errors=0 mem=ok mem_pages=.. pass=3 sweep_start=11.90                         one line, every ~200 ms
//! MISMATCH disk=0 block=17 memory_version=5 disk_version=4 kind=older|newer|torn|foreign
//! MEMORY page=3 version=9                                         a page of the table in memory is damaged
//! IOERROR op=write disk=0 block=17 error=...                      the guest saw an error, which it never should
//! ```
//! - `run` changes if and only if the witness was started anew. After a failover it stays and `seq` goes on (from
//!   the checkpoint, so it may repeat a few numbers).
//! - `up` and `sweep_start` are the guest's monotonic clock in seconds. `pass` counts completed sweeps;
//!   `sweep_start` is when the sweep in progress began. To know that the disks are good after a moment at which
//!   `pass` was p, wait for p + 2, or for one more than `pass` in the first line whose `sweep_start` is later.
//! - `checked` counts blocks compared, `reads` read requests. Of each bad thing at most [`MAX_LINES`] lines appear;
//!   the counters go on.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use crate::config::Config;
use crate::disk::Disk;
use crate::judge::Mismatch;
use crate::sweep::Sweeps;
use crate::table::BadPage;

/// Lines per kind of trouble: enough to see a pattern, too few to drown the serial line.
pub const MAX_LINES: u64 = 32;

/// What all workers have done so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Write requests.
    pub writes: AtomicU64,
    /// Flushes.
    pub flushes: AtomicU64,
    /// Write-zeroes requests.
    pub zeros: AtomicU64,
    /// Discards.
    pub discards: AtomicU64,
    /// Read requests.
    pub reads: AtomicU64,
    /// Blocks compared with memory.
    pub checked: AtomicU64,
    /// Blocks that were not what memory says.
    pub mismatches: AtomicU64,
    /// Requests that failed.
    pub io_errors: AtomicU64,
    /// Pages of the table in memory that were damaged.
    pub memory_errors: AtomicU64,
    /// Pages of the table in memory.
    pub memory_pages: AtomicU64,
}

/// The voice of the witness. Shared by all threads.
#[derive(Debug)]
pub struct Report {
    /// This run of the witness.
    pub run: u64,
    /// Counters that the workers raise.
    pub counts: Counts,
    disks: usize,
    sweeps: Mutex<Sweeps>,
}

impl Report {
    /// A report of `workers` workers on `disks` disks.
    pub fn new(run: u64, disks: usize, workers: usize) -> Self {
        Self {
            run,
            counts: Counts::default(),
            disks,
            sweeps: Mutex::new(Sweeps::new(workers)),
        }
    }

    /// The state of the sweeps. A worker that panicked is reported elsewhere, so a poisoned lock is used as it is.
    pub fn sweeps(&self) -> MutexGuard<'_, Sweeps> {
        self.sweeps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what runs, once.
    pub fn hello(&self, config: &Config, disks: &[Disk]) {
        let blocks: Vec<_> = disks.iter().map(|disk| disk.blocks().to_string()).collect();
        say(format_args!(
            "WITNESS run={:016x} disks={} blocks={} writers={} rate={} mem_mib={} seed={}",
            self.run,
            disks.len(),
            blocks.join(","),
            config.writers,
            config.rate,
            config.mem_mib,
            config.seed,
        ));
    }

    /// The periodic line.
    pub fn line(&self, seq: u64) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        let (pass, started) = {
            let sweeps = self.sweeps();
            (sweeps.passes(), sweeps.started())
        };
        say(format_args!(
            "W seq={seq} up={:.2} run={:016x} disks={} writes={} flushes={} zeros={} discards={} reads={} checked={} \
             mismatches={} io_errors={} mem={} mem_pages={} pass={pass} sweep_start={started:.2}",
            uptime(),
            self.run,
            self.disks,
            get(&counts.writes),
            get(&counts.flushes),
            get(&counts.zeros),
            get(&counts.discards),
            get(&counts.reads),
            get(&counts.checked),
            get(&counts.mismatches),
            get(&counts.io_errors),
            if get(&counts.memory_errors) == 0 {
                "ok"
            } else {
                "bad"
            },
            get(&counts.memory_pages),
        ));
    }

    /// A block is not what it must be.
    pub fn mismatch(&self, mismatch: &Mismatch) {
        if self.counts.mismatches.fetch_add(1, Ordering::Relaxed) < MAX_LINES {
            say(format_args!("MISMATCH {mismatch}"));
        }
    }

    /// A page of the table in memory is not what it must be.
    pub fn bad_page(&self, bad: BadPage) {
        if self.counts.memory_errors.fetch_add(1, Ordering::Relaxed) < MAX_LINES {
            say(format_args!(
                "MEMORY page={} version={}",
                bad.page, bad.version
            ));
        }
    }

    /// A request failed.
    pub fn io_error(&self, op: &str, disk: usize, block: usize, error: &std::io::Error) {
        if self.counts.io_errors.fetch_add(1, Ordering::Relaxed) < MAX_LINES {
            say(format_args!(
                "IOERROR op={op} disk={disk} block={block} error={error}"
            ));
        }
    }
}

/// The monotonic clock in nanoseconds. In a guest it is part of the machine's state and goes on after a failover.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

/// The monotonic clock in seconds.
pub fn uptime() -> f64 {
    std::time::Duration::from_nanos(now()).as_secs_f64()
}

/// One line in one write, so that lines of several threads don't mix. If nobody listens the work goes on.
fn say(line: fmt::Arguments<'_>) {
    let text = format!("{line}\n");
    let mut out = std::io::stdout().lock();
    let _nobody_listens = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
