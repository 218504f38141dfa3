//! Checkpoints of our own: a guest is booted, protected, and looked at while its witness works.

use std::time::{Duration, Instant};

use anyhow::Context;

use super::name;
use crate::cli::DeviceState;
use crate::cli::checkpoint::CheckpointArgs;
use crate::lab::failover::{until_protected, until_witness_works};
use crate::lab::layout::Layout;
use crate::lab::seen::Seen;
use crate::lab::{Site, Who};

/// Blocks that the witness has checked before a measurement: the guest is at work.
const AT_WORK: u64 = 50;
/// As short as an interval can be: a checkpoint is due when the last one is through.
pub(super) const SHORTEST_MS: u64 = 1;
/// What is tried after it, for a guest that makes no progress.
const LONGER_MS: [u64; 3] = [2, 4, 8];
/// A guest makes progress if it writes so much of what it writes unprotected.
pub(super) const PROGRESS: f64 = 0.25;

/// MiB that the guest's kernel and its programs need for themselves.
const SYSTEM_MIB: u64 = 96;

/// One run.
#[derive(Debug, Default, Clone)]
pub(super) struct Run {
    pub seen: Seen,
    /// Checkpoints committed per second.
    pub committed: f64,
    /// Blocks that the witness wrote per second.
    pub pace: f64,
    /// The same before the VM was protected.
    pub unprotected: f64,
    /// The interval at which it was.
    pub interval_ms: u64,
}

impl Run {
    pub(super) fn progress(&self) -> f64 {
        self.pace / self.unprotected.max(f64::MIN_POSITIVE)
    }
}

/// All runs of one kind.
#[derive(Debug)]
pub(super) struct Runs {
    pub mib: u64,
    pub asked: DeviceState,
    pub interval_ms: u64,
    pub runs: Vec<Run>,
}

impl Runs {
    pub(super) fn new(mib: u64, asked: DeviceState, interval_ms: u64) -> Self {
        Self {
            mib,
            asked,
            interval_ms,
            runs: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> String {
        format!(
            "{} MiB, every {} ms, {}",
            self.mib,
            self.interval_ms,
            name(self.asked)
        )
    }

    pub(super) fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    pub(super) fn measured(&self) -> bool {
        self.runs.iter().any(|run| !run.seen.pauses.is_empty())
    }
}

/// The run that is due.
pub(super) fn at_a_rate(args: &CheckpointArgs, runs: &Runs) -> anyhow::Result<Run> {
    measure(args, runs, runs.interval_ms)
}

/// The shortest interval at which the guest makes progress; the longest that is tried, if it makes none at any.
pub(super) fn as_fast_as_possible(args: &CheckpointArgs, runs: &Runs) -> anyhow::Result<Run> {
    let mut run = measure(args, runs, SHORTEST_MS)?;
    for interval_ms in LONGER_MS {
        if run.progress() >= PROGRESS {
            break;
        }
        run = measure(args, runs, interval_ms)?;
    }
    Ok(run)
}

/// What is added to the kernel's command line of a guest with so much RAM.
pub(super) fn append(args: &CheckpointArgs, mib: u64) -> String {
    format!(
        "witness.fill_mib={}",
        (mib * args.filled / 100).min(mib.saturating_sub(SYSTEM_MIB))
    )
}

fn measure(args: &CheckpointArgs, runs: &Runs, interval_ms: u64) -> anyhow::Result<Run> {
    let mut lab = args.lab.clone();
    lab.device_state = runs.asked;
    lab.memory = runs.mib;
    lab.interval = interval_ms;
    let layout = Layout {
        append: append(args, runs.mib),
        ..Layout::default()
    };
    let mut site = Site::with(&lab, &layout, Vec::new())?;
    site.start_source(&[])?;
    until_witness_works(&mut site, AT_WORK)?;
    let length = Duration::from_secs_f64(args.seconds);
    let unprotected = follow(&mut site, length / 2)?;
    site.start_standby()?;
    until_protected(&mut site, |_| {})?;
    until_witness_works(&mut site, AT_WORK)?;
    site.measure_from_now();
    let began = Instant::now();
    let pace = follow(&mut site, length)?;
    let seen = site.seen().clone();
    let committed = u32::try_from(seen.commit2.len()).unwrap_or(u32::MAX);
    Ok(Run {
        committed: f64::from(committed) / began.elapsed().as_secs_f64(),
        seen,
        pace,
        unprotected,
        interval_ms,
    })
}

/// Looks on for so long. Blocks that the witness wrote per second meanwhile.
fn follow(site: &mut Site, length: Duration) -> anyhow::Result<f64> {
    let writes = |site: &Site| {
        let said = site.serial(Who::Source).latest();
        said.map(|verdict| verdict.writes)
            .context("the guest's witness says nothing")
    };
    let (before, began) = (writes(site)?, Instant::now());
    while began.elapsed() < length {
        site.next_event(Duration::from_millis(5))?;
    }
    let blocks = u32::try_from(writes(site)?.saturating_sub(before)).unwrap_or(u32::MAX);
    Ok(f64::from(blocks) / began.elapsed().as_secs_f64())
}
