//! `epochgate bench checkpoint`: how long a loaded guest stands still for a checkpoint, part by part. The ways to take device
//! state alternate, so that whatever else the machine does meets them alike.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use coordinator::report::Pause;
use indicatif::{ProgressBar, ProgressStyle};
use qemu_glue::DeviceStateKind;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::DeviceState;
use crate::cli::bench::CheckpointArgs;
use crate::lab::Site;
use crate::lab::failover::{until_protected, until_witness_works};
use crate::lab::seen::Seen;
use crate::output::{millis, percentile};

/// Blocks that the witness has checked before a measurement: the guest is at work.
const AT_WORK: u64 = 50;

/// All runs of one way.
#[derive(Debug)]
struct Figures {
    asked: DeviceState,
    /// What came of it in the last run.
    taken: Option<DeviceStateKind>,
    pauses: Vec<Pause>,
    device_bytes: Vec<u64>,
    wire_bytes: Vec<u64>,
    /// Median of the whole pause of each run, in microseconds.
    medians: Vec<u64>,
    qemu: String,
    dirty_tracker: String,
}

/// Milliseconds.
#[derive(Debug, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    max: f64,
}

/// One part of a pause, or all of it.
type Part = fn(&Pause) -> u64;

const PARTS: [(&str, Part); 6] = [
    ("stop", |p| p.stop),
    ("seal", |p| p.seal),
    ("scan", |p| p.scan),
    ("copy", |p| p.copy),
    ("device_state", |p| p.device_state),
    ("resume", |p| p.resume),
];

pub(crate) fn run(args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    crate::runtime::interrupt_on_signals()?;
    let mut all: Vec<Figures> = args.ways.iter().copied().map(Figures::new).collect();
    let bar = progress(args);
    for repeat in 0..args.repeats {
        let mut order: Vec<&mut Figures> = all.iter_mut().collect();
        if repeat % 2 == 1 {
            order.reverse();
        }
        for figures in order {
            bar.set_message(name(figures.asked));
            figures.add(&measure(args, figures.asked)?);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if args.json {
        let ways: serde_json::Map<String, Value> = all
            .iter()
            .map(|figures| (name(figures.asked), figures.json()))
            .collect();
        let (memory, interval) = (args.lab.memory, args.lab.interval);
        println!(
            "{}",
            json!({ "memory_mib": memory, "interval_ms": interval, "repeats": args.repeats, "ways": ways })
        );
    } else {
        all.iter().for_each(Figures::print);
    }
    let measured = all.iter().all(|figures| !figures.pauses.is_empty());
    Ok(if measured {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn name(way: DeviceState) -> String {
    way.to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Boots a guest, protects it, and looks on.
fn measure(args: &CheckpointArgs, way: DeviceState) -> anyhow::Result<Seen> {
    let mut lab = args.lab.clone();
    lab.device_state = way;
    let mut site = Site::start(&lab)?;
    site.start_source(&[])?;
    until_witness_works(&mut site, AT_WORK)?;
    site.start_standby()?;
    until_protected(&mut site, |_| {})?;
    until_witness_works(&mut site, AT_WORK)?;
    site.measure_from_now();
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    while Instant::now() < end {
        site.next_event(Duration::from_millis(5))?;
    }
    Ok(site.seen().clone())
}

fn progress(args: &CheckpointArgs) -> ProgressBar {
    if args.json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::from(args.repeats) * args.ways.len() as u64);
    match ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg} (about {eta} to go)") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl Figures {
    fn new(asked: DeviceState) -> Self {
        Self {
            asked,
            taken: None,
            pauses: Vec::new(),
            device_bytes: Vec::new(),
            wire_bytes: Vec::new(),
            medians: Vec::new(),
            qemu: String::new(),
            dirty_tracker: String::new(),
        }
    }

    fn add(&mut self, seen: &Seen) {
        self.taken = seen.device_state;
        self.medians
            .push(percentile(&sorted(&seen.pauses, |p| p.total), 50));
        self.pauses.extend(&seen.pauses);
        self.device_bytes.extend(&seen.device_bytes);
        self.wire_bytes.extend(&seen.wire_bytes);
        self.qemu.clone_from(&seen.qemu);
        self.dirty_tracker.clone_from(&seen.dirty_tracker);
    }

    fn part(&self, part: Part) -> Spread {
        let values = sorted(&self.pauses, part);
        let at = |p| millis(percentile(&values, p));
        Spread {
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }

    fn json(&self) -> Value {
        let parts: serde_json::Map<String, Value> = PARTS
            .iter()
            .map(|(name, part)| ((*name).to_owned(), json!(self.part(*part))))
            .collect();
        let Spread { p50, p99, max } = self.part(|p| p.total);
        json!({
            "checkpoints": self.pauses.len(),
            "pause_ms": { "p50": p50, "p99": p99, "max": max, "parts": parts },
            "pause_p50_ms_of_runs": self.medians.iter().map(|us| millis(*us)).collect::<Vec<_>>(),
            "device_bytes": mean(&self.device_bytes),
            "checkpoint_bytes": mean(&self.wire_bytes),
            "device_state": self.taken,
            "dirty_tracker": self.dirty_tracker,
            "qemu": self.qemu,
        })
    }

    fn print(&self) {
        let taken = self
            .taken
            .map_or_else(String::new, |kind| format!(", taken by {kind}"));
        println!(
            "device state \"{}\"{taken}: {} checkpoints, {} bytes of it each; QEMU {}, dirty pages by {}",
            name(self.asked),
            self.pauses.len(),
            mean(&self.device_bytes),
            self.qemu,
            self.dirty_tracker
        );
        let total: (&str, Part) = ("pause", |p| p.total);
        for (name, part) in std::iter::once(total).chain(PARTS) {
            let Spread { p50, p99, max } = self.part(part);
            println!("{name:>14}  p50 {p50:>7} ms  p99 {p99:>7} ms  max {max:>7} ms");
        }
    }
}

fn sorted(pauses: &[Pause], part: Part) -> Vec<u64> {
    let mut values: Vec<u64> = pauses.iter().map(part).collect();
    values.sort_unstable();
    values
}

fn mean(values: &[u64]) -> u64 {
    values.iter().sum::<u64>() / (values.len() as u64).max(1)
}
