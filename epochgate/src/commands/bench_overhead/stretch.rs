//! One guest with its hosts, and what is measured in one stretch of one workload.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use coordinator::report::Report;

use super::case::Case;
use super::client::{Client, PORT};
use crate::cli::overhead::{OverheadArgs, Workload};
use crate::lab::board::{Board, Loop};
use crate::lab::chain::{Chain, Disks, Plan};
use crate::lab::lan::Lan;

/// Size of each of the guest's disks.
const DISK_BYTES: u64 = 64 << 20;
/// A workload that has just begun is not measured yet, nor is a protection.
const WARM_UP: Duration = Duration::from_millis(300);
const TICK: Duration = Duration::from_millis(5);

/// What one stretch came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// Units of the workload per second.
    pub pace: f64,
    /// Microseconds of each round trip.
    pub trips: Vec<u64>,
    /// CPU seconds per second of QEMU, coordinator, gateway, standby.
    pub cpu: [f64; 4],
    /// Checkpoints per second.
    pub checkpoints: f64,
    /// Share of the time that the guest was paused.
    pub paused: f64,
    /// Bytes of memory that were dirty, per checkpoint.
    pub dirty: u64,
    /// Bytes on the wire, per checkpoint.
    pub wire: u64,
}

/// All stretches of one workload.
#[derive(Debug)]
pub(super) struct Pair {
    pub workload: Workload,
    pub unprotected: Vec<Sample>,
    pub protected: Vec<Sample>,
}

impl Pair {
    pub(super) fn new(workload: Workload) -> Self {
        Self {
            workload,
            unprotected: Vec::new(),
            protected: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, protected: bool, sample: Sample) {
        if protected {
            self.protected.push(sample);
        } else {
            self.unprotected.push(sample);
        }
    }
}

/// A running guest.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    chain: Chain,
    board: Board,
    lan: Option<&'a Lan>,
    protected: bool,
    length: Duration,
    /// Version of QEMU.
    pub qemu: String,
}

impl<'a> Bench<'a> {
    /// Boots the guest, and waits until its load runs. It is not protected.
    pub(super) fn start(
        args: &OverheadArgs,
        case: &Case,
        guest: &Path,
        lan: Option<&'a Lan>,
    ) -> anyhow::Result<Self> {
        let service = if lan.is_some() { PORT } else { 0 };
        let plan = Plan {
            lab: &args.lab,
            output: case.output,
            rhythm: case.rhythm,
            interval_ms: case.interval_ms,
            disks: Disks::Blank(DISK_BYTES),
            append: format!(
                "witness.service={service} witness.load_mib={}",
                args.working_set
            ),
        };
        let mut chain = Chain::start(&plan, guest, lan)?;
        let qemu = match chain.boot(false)?.report {
            Report::VmStarted { qemu, .. } => qemu,
            _ => String::new(),
        };
        let ram_dir = chain.ram_dir().to_owned();
        let board = Board::find(&ram_dir, || chain.follow(TICK))?;
        Ok(Self {
            chain,
            board,
            lan,
            protected: false,
            length: Duration::from_secs_f64(args.seconds),
            qemu,
        })
    }

    /// Sees to it that the guest is protected, or that it is not.
    pub(super) fn protect(&mut self, wanted: bool) -> anyhow::Result<()> {
        if self.protected == wanted {
            return Ok(());
        }
        // The first copy of a guest that does nothing takes the least.
        self.board.choose(Loop::Idle)?;
        if wanted {
            self.chain.start_standby()?;
            self.chain.until_protected(|_| {})?;
        } else {
            self.chain.kill_standby();
            self.chain.until_unprotected()?;
        }
        self.protected = wanted;
        Ok(())
    }

    /// One stretch.
    pub(super) fn sample(&mut self, workload: Workload) -> anyhow::Result<Sample> {
        let which = match workload {
            Workload::Cpu => Loop::Processor,
            Workload::Memory => Loop::Memory,
            Workload::Disk => Loop::Disk,
            Workload::RoundTrip | Workload::Stream => Loop::Idle,
        };
        let mut client = match (workload.on_network(), self.lan) {
            (true, Some(lan)) => Some(Client::start(&lan.outside, workload)?),
            _ => None,
        };
        self.board.choose(which)?;
        if let Some(client) = &mut client {
            while client.count()? == 0 {
                self.chain.follow(TICK)?;
            }
        }
        self.follow(WARM_UP)?;
        self.chain.take_checkpoints();
        if let Some(client) = &client {
            client.take_trips();
        }
        let cpu = self.chain.cpu_times();
        let (began, before) = (Instant::now(), self.done(which, client.as_mut())?);
        self.follow(self.length)?;
        let (after, length) = (self.done(which, client.as_mut())?, began.elapsed());
        let spent = self.chain.cpu_times();
        let checkpoints = self.chain.take_checkpoints();
        let trips = client.as_ref().map(Client::take_trips).unwrap_or_default();
        drop(client);
        let seconds = length.as_secs_f64();
        let count = checkpoints.pauses.len() as u64;
        let paused: u64 = checkpoints.pauses.iter().sum();
        Ok(Sample {
            pace: count_of(after.saturating_sub(before)) * scale(workload) / seconds,
            trips,
            cpu: std::array::from_fn(|part| {
                spent[part].saturating_sub(cpu[part]).as_secs_f64() / seconds
            }),
            checkpoints: count_of(count) / seconds,
            paused: Duration::from_micros(paused).as_secs_f64() / seconds,
            dirty: checkpoints.dirty_bytes / count.max(1),
            wire: checkpoints.wire_bytes / count.max(1),
        })
    }

    fn done(&self, which: Loop, client: Option<&mut Client>) -> anyhow::Result<u64> {
        match client {
            Some(client) => client.count(),
            None => self.board.done(which),
        }
        .context("what the guest has done can't be read")
    }

    fn follow(&mut self, length: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + length;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.chain.follow(left.min(TICK))?;
        }
        Ok(())
    }
}

/// Bytes are shown as megabytes.
fn scale(workload: Workload) -> f64 {
    match workload {
        Workload::Stream => 1e-6,
        _ => 1.0,
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a count of things within seconds"
)]
fn count_of(count: u64) -> f64 {
    count as f64
}
