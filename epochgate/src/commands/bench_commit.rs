//! `epochgate bench commit`: how long COMMIT 2 of a large epoch takes, against fio writing the same bytes in the same
//! pattern to the same file system, and how many bytes reach the storage for each that the guest writes.

mod report;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use nbd_server::GatewayConfig;
use nbd_server::group::{DiskConfig, GroupConfig, GroupMode};
use serde::Serialize;

use crate::bench::fio;
use crate::bench::gateway::Gateway;
use crate::bench::image::{make_image, scratch};
use crate::bench::interrupt;
use crate::bench::machine::Machine;
use crate::bench::output::output;
use crate::bench::proc;
use crate::bench::server::installed;
use crate::cli::bench::{CommitArgs, Pattern};
use crate::exit::Usage;
use crate::load::{self, Content, Load, Order, Stop};

/// Name of the group and of its disk.
const GROUP: &str = "bench";
const DISK: &str = "disk";
/// Who owns the group, and who holds its memory: names only, there is no guest.
const OWNER: &str = "bench-source";
const STANDBY: &str = "bench-standby";
/// Requests in flight while an epoch is filled.
const DEPTH: usize = 16;

/// One epoch and its rival.
#[derive(Debug, Clone, Copy, Serialize)]
struct Turn {
    /// Bytes that the guest wrote.
    guest_bytes: u64,
    /// Bytes that the sealed epoch held: less if blocks were written more than once.
    epoch_bytes: u64,
    /// From the request to seal to its answer.
    seal_s: f64,
    /// COMMIT 2: from the request to seal until the commit record is durable, log writes included.
    commit_s: f64,
    /// fio: the same bytes in the same pattern, and one fdatasync.
    fio_s: f64,
    /// Bytes that the gateway caused to be written, to log and image, until all was applied.
    written_bytes: u64,
}

/// All turns of one pattern.
#[derive(Debug, Clone, Serialize)]
struct Series {
    pattern: &'static str,
    turns: Vec<Turn>,
}

pub(crate) fn run(args: &CommitArgs) -> anyhow::Result<ExitCode> {
    let grain = 4 << 20;
    if !args.size.is_multiple_of(grain) || args.size < 16 * grain {
        return Err(Usage("--size must be a multiple of 4M, and 64M or more".to_owned()).into());
    }
    if !installed("fio") {
        return Err(
            Usage("fio is not installed: install the Debian package fio".to_owned()).into(),
        );
    }
    interrupt::watch()?;
    let dir = scratch(args.dir.as_deref())?;
    let bar = progress(args);
    let mut all = Vec::new();
    for pattern in &args.pattern {
        all.push(Series {
            pattern: name(*pattern),
            turns: turns(args, *pattern, dir.path(), &bar)?,
        });
    }
    bar.finish_and_clear();
    let machine = Machine::here(dir.path());
    output(
        &args.output,
        &report::json(args, &machine, &all),
        &report::markdown(args, &machine, &all),
        &report::text(args, &machine, &all),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn name(pattern: Pattern) -> &'static str {
    match pattern {
        Pattern::Sequential => "sequential",
        Pattern::Random => "random",
        Pattern::Overwrite => "overwrite",
    }
}

/// The bytes of the disk that a pattern touches.
fn area(pattern: Pattern, size: u64) -> u64 {
    match pattern {
        Pattern::Overwrite => size / 4,
        Pattern::Sequential | Pattern::Random => size,
    }
}

fn block(pattern: Pattern) -> u32 {
    match pattern {
        Pattern::Sequential => 256 << 10,
        Pattern::Random | Pattern::Overwrite => 4096,
    }
}

fn progress(args: &CommitArgs) -> ProgressBar {
    let turns = args.pattern.len() as u64 * u64::from(args.repeats);
    let bar = ProgressBar::new(turns);
    match ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn turns(
    args: &CommitArgs,
    pattern: Pattern,
    dir: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<Vec<Turn>> {
    let dir = dir.join(name(pattern));
    std::fs::create_dir(&dir)?;
    let image = dir.join("disk.img");
    bar.set_message(format!("{}: making the disks", name(pattern)));
    make_image(&image, args.size)?;
    let rival = dir.join("fio.img");
    // With room for the block that fio writes after its sync.
    make_image(&rival, area(pattern, args.size) + u64::from(block(pattern)))?;
    let gateway = start(args, &image, &dir)?;
    let attached = gateway
        .ask(|client| async move { client.attach(GROUP, OWNER).await })
        .context("the group can't be attached")?;
    let generation = attached.generation;
    let commit = || -> anyhow::Result<(Duration, Duration, u64)> {
        let started = Instant::now();
        let sealed = gateway.ask(|client| async move { client.seal(GROUP, generation).await })?;
        let sealed_after = started.elapsed();
        let epoch = sealed.epoch;
        gateway
            .ask(|client| async move { client.commit(GROUP, generation, epoch, STANDBY).await })?;
        Ok((sealed_after, started.elapsed(), sealed.bytes))
    };
    // The first seal leads from sync to async mode, and is empty.
    commit()?;
    let export = attached
        .exports
        .get(DISK)
        .context("the gateway does not name the export of the disk")?;
    let target = gateway.target(export);
    let mut content = Content::new(args.size);
    let mut turns = Vec::new();
    for turn in 0..args.repeats {
        interrupt::check()?;
        gateway.applied(GROUP)?;
        let before = proc::written(gateway.pid())?;
        bar.set_message(format!("{}: filling an epoch", name(pattern)));
        let filled = load::run(&target, &fill(args, pattern, turn), &mut content)?;
        bar.set_message(format!("{}: COMMIT 2", name(pattern)));
        let (seal, commit, epoch_bytes) = commit()?;
        gateway.applied(GROUP)?;
        let written = proc::written(gateway.pid())?.saturating_sub(before);
        bar.set_message(format!("{}: fio", name(pattern)));
        let fio = write_by_fio(args, pattern, turn, &rival, &dir)?;
        turns.push(Turn {
            guest_bytes: filled.bytes,
            epoch_bytes,
            seal_s: seal.as_secs_f64(),
            commit_s: commit.as_secs_f64(),
            fio_s: fio.as_secs_f64(),
            written_bytes: written,
        });
        bar.inc(1);
    }
    read_back(args, &target, &mut content)?;
    drop(gateway);
    std::fs::remove_dir_all(&dir)?;
    Ok(turns)
}

fn start(args: &CommitArgs, image: &Path, dir: &Path) -> anyhow::Result<Gateway> {
    let group = GroupConfig {
        mode: GroupMode::Async,
        // The whole epoch and what it costs beside its data, with small blocks: writes must not wait for the budget.
        memory_budget_mib: 2 * (args.size >> 20) + 256,
        ..GroupConfig::new(
            GROUP,
            dir.join("log"),
            vec![DiskConfig {
                name: DISK.to_owned(),
                image: image.to_owned(),
                read_only: false,
                export: None,
            }],
        )
    };
    let config = GatewayConfig {
        groups: vec![group],
        ..GatewayConfig::default()
    };
    Gateway::start(config, dir)
}

/// Fills one epoch.
fn fill(args: &CommitArgs, pattern: Pattern, turn: u32) -> Load {
    let block = block(pattern);
    Load {
        depth: DEPTH,
        block: block as usize,
        read_percent: 0,
        order: match pattern {
            Pattern::Sequential => Order::Sequential,
            Pattern::Random => Order::Shuffled,
            Pattern::Overwrite => Order::Random,
        },
        area: 0..area(pattern, args.size),
        stop: Stop::Requests(args.size / u64::from(block)),
        seed: u64::from(turn) + 1,
        ..Load::new(args.size)
    }
}

/// What was committed is what is read, epoch or image.
fn read_back(
    args: &CommitArgs,
    target: &load::Target,
    content: &mut Content,
) -> anyhow::Result<()> {
    let load = Load {
        block: 256 << 10,
        depth: 4,
        order: Order::Sequential,
        stop: Stop::Requests(args.size / (256 << 10)),
        ..Load::new(args.size)
    };
    load::run(target, &load, content).map(drop)
}

/// One fio process: the writes, then one fdatasync; the time of both.
fn write_by_fio(
    args: &CommitArgs,
    pattern: Pattern,
    turn: u32,
    file: &Path,
    scratch: &Path,
) -> anyhow::Result<Duration> {
    let block = u64::from(block(pattern));
    let count = args.size / block;
    // fio syncs after so many writes only when another one follows: hence one block more, and a file that has it.
    let (area, bytes) = (area(pattern, args.size), (count + 1) * block);
    let order = match pattern {
        Pattern::Sequential => format!("rw=write\nsize={bytes}"),
        Pattern::Random => format!("rw=randwrite\nsize={bytes}"),
        Pattern::Overwrite => format!("rw=randwrite\nnorandommap\nsize={area}\nio_size={bytes}"),
    };
    let job = format!(
        "[commit]\nioengine=psync\nfilename={}\nfallocate=none\nbs={block}\nfdatasync={count}\nrandseed={}\n{order}\n",
        file.display(),
        turn + 1
    );
    let outcome = fio::write(&job, scratch)?;
    ensure!(
        outcome.syncs == 1 && outcome.bytes == bytes,
        "fio wrote {} bytes with {} syncs, it should have been {bytes} with 1",
        outcome.bytes,
        outcome.syncs
    );
    Ok(outcome.elapsed)
}
