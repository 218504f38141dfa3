//! `epochgate bench memory`: a client writes faster than the storage takes it for as long as many epochs last, and the
//! gateway must stay within its memory budget, while another export beside it is still served.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use nbd_server::group::{DiskConfig, GroupConfig, GroupMode};
use nbd_server::{ExportConfig, GatewayConfig};
use serde::Serialize;
use serde_json::json;

use crate::bench::gateway::Gateway;
use crate::bench::image::{make_image, scratch};
use crate::bench::interrupt;
use crate::bench::machine::Machine;
use crate::bench::output::output;
use crate::bench::proc;
use crate::cli::bench::MemoryArgs;
use crate::exit::Usage;
use crate::load::{self, Content, Latency, Load, Stop, Target};

/// What the gateway may use beyond the budget, in bytes: its code, its connections, its buffers.
const BEYOND: u64 = 64 << 20;
/// The group that is written, and the export beside it.
const GROUP: &str = "busy";
const DISK: &str = "disk";
const BESIDE: &str = "beside";
/// Size of the disk beside it.
const BESIDE_SIZE: u64 = 64 << 20;
/// Between two samples of memory and epochs.
const SAMPLE: Duration = Duration::from_millis(100);
/// Length of one run of the writer, between which it looks whether it is time to stop.
const STEP: Duration = Duration::from_millis(500);
/// Requests in flight of the writer, on each of its connections.
const DEPTH: usize = 64;

/// What came of it. Bytes unless the name says otherwise.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    budget: u64,
    limit: u64,
    peak_rss: u64,
    rss_median: u64,
    /// Most that the epochs held at any sample.
    peak_held: u64,
    seconds: f64,
    epochs: u64,
    guest_bytes: u64,
    guest_bytes_per_second: f64,
    writes: u64,
    write_latency_us: Latency,
    /// Reads of 4 KiB, one at a time, of the export beside it: while the other is written, and alone.
    beside_latency_us: Latency,
    beside_alone_us: Latency,
    ended_by: &'static str,
}

pub(crate) fn run(args: &MemoryArgs) -> anyhow::Result<ExitCode> {
    if !args.budget.is_multiple_of(1 << 20) || args.budget == 0 {
        return Err(Usage("--budget must be whole MiB".to_owned()).into());
    }
    if !args.size.is_multiple_of(1 << 20) || args.size < 16 << 20 {
        return Err(Usage("--size must be whole MiB, and 16M or more".to_owned()).into());
    }
    interrupt::watch()?;
    let dir = scratch(args.dir.as_deref())?;
    let figures = measure(args, dir.path())?;
    let machine = Machine::here(dir.path());
    let good = figures.peak_rss <= figures.limit;
    let json = json!({ "machine": machine, "within_limit": good, "figures": figures });
    output(
        &args.output,
        &json,
        &markdown(&figures, &machine),
        &text(&figures),
    )?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn measure(args: &MemoryArgs, dir: &Path) -> anyhow::Result<Figures> {
    let image = dir.join("disk.img");
    let beside = dir.join("beside.img");
    make_image(&image, args.size)?;
    make_image(&beside, BESIDE_SIZE)?;
    let mut gateway = Gateway::start(config(args, &image, &beside, dir), dir)?;
    let target = gateway.target(&format!("{GROUP}/{DISK}"));
    let beside = gateway.target(BESIDE);
    let mut beside_content = Content::new(BESIDE_SIZE);
    let alone = load::run(&beside, &one_at_a_time(STEP), &mut beside_content)?;
    let first = gateway.group(GROUP)?.committed.0;

    let writing = AtomicBool::new(true);
    let started = Instant::now();
    let bar = progress(args);
    let (written, read, samples) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(args, &target, &writing));
        let reader = scope.spawn(|| read(&beside, &mut beside_content, &writing));
        let samples = watch(args, &mut gateway, first, started, &bar, || {
            writer.is_finished() || reader.is_finished()
        });
        writing.store(false, Ordering::Relaxed);
        let written = writer.join().unwrap_or_else(|_| Err(panicked("writer")));
        let read = reader.join().unwrap_or_else(|_| Err(panicked("reader")));
        (written, read, samples)
    });
    bar.finish_and_clear();
    let written = written.context("the writer")?;
    let read = read.context("the reader of the export beside it")?;
    let mut samples = samples?;
    let seconds = started.elapsed().as_secs_f64();
    gateway.alive()?;
    let peak_rss = proc::memory(gateway.pid(), "VmHWM")?;
    samples.rss.sort_unstable();
    let guest_bytes = written.bytes;
    #[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
    let rate = guest_bytes as f64 / seconds;
    Ok(Figures {
        budget: args.budget,
        limit: args.budget + BEYOND,
        peak_rss,
        rss_median: crate::output::percentile(&samples.rss, 50),
        peak_held: samples.held,
        seconds,
        epochs: samples.committed.saturating_sub(first),
        guest_bytes,
        guest_bytes_per_second: rate,
        writes: written.requests,
        write_latency_us: written.latency.latency(),
        beside_latency_us: read.latency.latency(),
        beside_alone_us: alone.latency.latency(),
        ended_by: samples.ended_by,
    })
}

fn panicked(who: &str) -> anyhow::Error {
    anyhow::anyhow!("the {who} has panicked")
}

fn config(args: &MemoryArgs, image: &Path, beside: &Path, dir: &Path) -> GatewayConfig {
    let disk = DiskConfig {
        name: DISK.to_owned(),
        image: image.to_owned(),
        read_only: false,
        export: None,
    };
    GatewayConfig {
        groups: vec![GroupConfig {
            mode: GroupMode::Async,
            epoch_interval_ms: args.epoch_interval,
            history: None,
            memory_budget_mib: args.budget >> 20,
            ..GroupConfig::new(GROUP, dir.join("log"), vec![disk])
        }],
        exports: vec![ExportConfig {
            name: BESIDE.to_owned(),
            image: beside.to_owned(),
            ..ExportConfig::default()
        }],
        ..GatewayConfig::default()
    }
}

/// Writes without pause, blocks of 16 KiB at random over two connections, until it is told to stop. Random, because that is
/// what the storage is slowest at.
fn write(args: &MemoryArgs, target: &Target, on: &AtomicBool) -> anyhow::Result<load::Outcome> {
    let mut content = Content::new(args.size);
    let mut all = load::Outcome::default();
    let mut seed = 1;
    while on.load(Ordering::Relaxed) {
        let load = Load {
            connections: 2,
            depth: DEPTH,
            block: 16 << 10,
            read_percent: 0,
            stop: Stop::After(STEP),
            seed,
            ..Load::new(args.size)
        };
        all.add(&load::run(target, &load, &mut content)?);
        seed += 1;
    }
    Ok(all)
}

fn one_at_a_time(length: Duration) -> Load {
    Load {
        depth: 1,
        stop: Stop::After(length),
        ..Load::new(BESIDE_SIZE)
    }
}

fn read(target: &Target, content: &mut Content, on: &AtomicBool) -> anyhow::Result<load::Outcome> {
    let mut all = load::Outcome::default();
    while on.load(Ordering::Relaxed) {
        all.add(&load::run(target, &one_at_a_time(STEP), content)?);
    }
    Ok(all)
}

#[derive(Debug)]
struct Samples {
    rss: Vec<u64>,
    held: u64,
    committed: u64,
    ended_by: &'static str,
}

/// Samples the gateway until one of the ends is reached.
fn watch(
    args: &MemoryArgs,
    gateway: &mut Gateway,
    first: u64,
    started: Instant,
    bar: &ProgressBar,
    stopped: impl Fn() -> bool,
) -> anyhow::Result<Samples> {
    let mut samples = Samples {
        rss: Vec::new(),
        held: 0,
        committed: first,
        ended_by: "",
    };
    while samples.ended_by.is_empty() {
        std::thread::sleep(SAMPLE);
        interrupt::check()?;
        gateway.alive()?;
        samples.rss.push(proc::memory(gateway.pid(), "VmRSS")?);
        let status = gateway.group(GROUP)?;
        samples.held = samples.held.max(status.bytes_held);
        samples.committed = status.committed.0;
        let epochs = samples.committed.saturating_sub(first);
        let bytes: u64 = status.disks.iter().map(|disk| disk.bytes_written).sum();
        bar.set_position(epochs.min(args.epochs));
        samples.ended_by = if stopped() {
            "a client that failed"
        } else if epochs >= args.epochs {
            "epochs"
        } else if args.volume.is_some_and(|volume| bytes >= volume) {
            "volume"
        } else if started.elapsed().as_secs_f64() >= args.seconds {
            "time"
        } else {
            ""
        };
    }
    Ok(samples)
}

fn progress(args: &MemoryArgs) -> ProgressBar {
    let bar = ProgressBar::new(args.epochs);
    match ProgressStyle::with_template("{pos}/{len} epochs {wide_bar} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The rows of both forms.
fn rows(figures: &Figures) -> Vec<(&'static str, String)> {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let us = |latency: &Latency| {
        format!(
            "{:.0} mean, {:.0} p50, {:.0} p99",
            latency.mean, latency.p50, latency.p99
        )
    };
    vec![
        ("peak resident memory", mib(figures.peak_rss)),
        ("limit (budget + 64 MiB)", mib(figures.limit)),
        ("median resident memory", mib(figures.rss_median)),
        ("most that the epochs held", mib(figures.peak_held)),
        (
            "written by the guest",
            format!(
                "{} in {:.0} s ({:.0} MB/s)",
                mib(figures.guest_bytes),
                figures.seconds,
                figures.guest_bytes_per_second / 1e6
            ),
        ),
        (
            "epochs committed and applied",
            format!("{} (ended by {})", figures.epochs, figures.ended_by),
        ),
        ("16 KiB writes, µs", us(&figures.write_latency_us)),
        (
            "4 KiB reads of the export beside it, µs",
            us(&figures.beside_latency_us),
        ),
        (
            "the same with nothing beside it, µs",
            us(&figures.beside_alone_us),
        ),
    ]
}

fn text(figures: &Figures) -> String {
    rows(figures)
        .iter()
        .map(|(what, value)| format!("{what:>40}  {value}\n"))
        .collect()
}

fn markdown(figures: &Figures, machine: &Machine) -> String {
    let mut out = format!(
        "## Memory under writes that are faster than the storage\n\n16 KiB random writes, {} in flight on two connections, into a group in \
         async mode with a budget of {} MiB; another export of the same gateway is read one request at a time meanwhile. {} cores, Linux {}, {}.\n\n\
         | | |\n|---|---:|\n",
        DEPTH,
        figures.budget >> 20,
        machine.cores,
        machine.kernel,
        machine.file_system
    );
    for (what, value) in rows(figures) {
        out.push_str(&format!("| {what} | {value} |\n"));
    }
    out.push('\n');
    out
}
