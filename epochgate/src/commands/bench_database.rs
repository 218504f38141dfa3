//! `epochgate bench database`: kills the host of a database over and over, or moves it, from host to host, while clients work with it, and
//! counts what they lose. In the end all hosts are killed and the VM boots from its disks, so that the database's own file is judged as well.

mod markdown;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::bench::output::output;
use crate::cli::database::DatabaseBenchArgs;
use crate::database::load::Faults;
use crate::database::stand::{Move, Stand, keep};
use crate::lab::chain::Checkpoints;
use crate::output::spread;

/// The database has its first pages, and each client its connection.
const WARM_UP: Duration = Duration::from_secs(1);

/// What was measured over one stretch of time without a failover.
#[derive(Debug, Default)]
struct Stretch {
    acknowledged: u64,
    length: Duration,
    /// How long each transaction took, in microseconds, sorted.
    times: Vec<u64>,
}

/// Moves of one kind in a row, and what was noticed from the first one to the protection after the last.
#[derive(Debug, Default)]
struct Moves {
    moves: Vec<Move>,
    acknowledged: u64,
    faults: Faults,
}

/// All that was measured.
#[derive(Debug, Default)]
struct Figures {
    unprotected: Stretch,
    protected: Stretch,
    checkpoints: Checkpoints,
    failovers: Moves,
    switchovers: Moves,
    acknowledged: u64,
    audited: u64,
    boot: Duration,
}

pub(crate) fn run(args: &DatabaseBenchArgs) -> anyhow::Result<ExitCode> {
    crate::runtime::interrupt_on_signals()?;
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    let mut stand = Stand::start(&args.database, seed, |_| {})?;
    let figures = match play(args, &mut stand, seed) {
        Ok(figures) => figures,
        Err(error) => return Err(keep(&mut stand.chain, &args.database, error)),
    };
    let faults = stand.faults();
    if !faults.none()
        && args.database.keep
        && let Some(kept) = stand.chain.keep()
    {
        eprintln!("epochgate: kept {}", kept.display());
    }
    let mut summary = figures.summary(args, seed);
    for (key, value) in [
        ("lost", json!(faults.lost)),
        ("resets", json!(faults.resets)),
        ("wrong", json!(faults.wrong)),
        ("complaints", json!(faults.complaints)),
    ] {
        summary[key] = value;
    }
    let markdown = markdown::section(args, &summary);
    output(&args.figures, &summary, &markdown, &text(&summary))?;
    Ok(if faults.none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn play(args: &DatabaseBenchArgs, stand: &mut Stand, seed: u64) -> anyhow::Result<Figures> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut figures = Figures {
        boot: stand.boot,
        ..Figures::default()
    };
    let bar = progress(args);
    stand.run(WARM_UP)?;
    let length = Duration::from_secs(args.seconds);
    figures.unprotected = measure(stand, length)?;
    stand.protect(|_| {})?;
    stand.run(WARM_UP)?;
    stand.chain.take_checkpoints();
    figures.protected = measure(stand, length)?;
    figures.checkpoints = stand.chain.take_checkpoints();
    let late = Duration::from_millis(args.database.lab.interval * 7 / 10);
    figures.failovers = moves(stand, &mut rng, &bar, args.failovers, |stand| {
        if args.late {
            stand.chain.until_committed()?;
            std::thread::sleep(late);
        }
        stand.fail_over()
    })?;
    figures.switchovers = moves(stand, &mut rng, &bar, args.switchovers, Stand::switch_over)?;
    figures.audited = stand.settle()?.rows;
    figures.acknowledged = stand.load.answers();
    figures.audited += stand.boot_from_disk()?.rows;
    bar.finish_and_clear();
    Ok(figures)
}

/// So many moves, each at a random instant and followed by the protection of the VM at its new host.
fn moves(
    stand: &mut Stand,
    rng: &mut StdRng,
    bar: &ProgressBar,
    count: u32,
    mut to_the_next: impl FnMut(&mut Stand) -> anyhow::Result<Move>,
) -> anyhow::Result<Moves> {
    let (answers, faults) = (stand.load.answers(), stand.faults());
    let mut moves = Vec::new();
    for _ in 0..count {
        stand.run(Duration::from_millis(rng.random_range(200..1200)))?;
        let moved = to_the_next(stand)?;
        tracing::debug!(?moved, "moved");
        moves.push(moved);
        stand.protect(|_| {})?;
        bar.inc(1);
    }
    Ok(Moves {
        moves,
        acknowledged: stand.load.answers() - answers,
        faults: stand.faults().since(&faults),
    })
}

fn measure(stand: &mut Stand, length: Duration) -> anyhow::Result<Stretch> {
    stand.load.take_times_us();
    let (began, before) = (Instant::now(), stand.load.answers());
    stand.run(length)?;
    Ok(Stretch {
        acknowledged: stand.load.answers() - before,
        length: began.elapsed(),
        times: stand.load.take_times_us(),
    })
}

fn progress(args: &DatabaseBenchArgs) -> ProgressBar {
    if args.figures.json.is_some() || args.figures.markdown.is_some() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(u64::from(args.failovers) + u64::from(args.switchovers));
    match ProgressStyle::with_template("{pos}/{len} moves {wide_bar} (about {eta} to go)") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

impl Stretch {
    #[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
    fn per_second(&self) -> f64 {
        let rate = self.acknowledged as f64 / self.length.as_secs_f64().max(1e-3);
        (rate * 10.0).round() / 10.0
    }
}

impl Moves {
    fn summary(&self) -> Value {
        let each = |f: fn(&Move) -> u64| spread(self.moves.iter().map(f).collect());
        json!({
            "count": self.moves.len(),
            "acknowledged": self.acknowledged,
            "lost": self.faults.lost,
            "resets": self.faults.resets,
            "wrong": self.faults.wrong,
            "stall_ms": each(|moved| moved.stall_us),
            "running_ms": each(|moved| moved.took_us),
        })
    }
}

impl Figures {
    fn summary(&self, args: &DatabaseBenchArgs, seed: u64) -> Value {
        let checkpoints = &self.checkpoints;
        json!({
            "failovers": self.failovers.summary(),
            "switchovers": self.switchovers.summary(),
            "acknowledged": self.acknowledged,
            "audited": self.audited,
            "connections": args.database.connections,
            "output": args.database.output.name(),
            "rhythm": args.database.rhythm.name(),
            "interval_ms": args.database.lab.interval,
            "memory_mib": args.database.lab.memory,
            "transactions_per_second": {
                "unprotected": self.unprotected.per_second(),
                "protected": self.protected.per_second(),
            },
            "transaction_ms": {
                "unprotected": spread(self.unprotected.times.clone()),
                "protected": spread(self.protected.times.clone()),
            },
            "checkpoints": checkpoints.pauses.len(),
            "pause_ms": spread(checkpoints.pauses.clone()),
            "dirty_bytes": checkpoints.dirty_bytes,
            "wire_bytes": checkpoints.wire_bytes,
            "disk_bytes": checkpoints.disk_bytes,
            "wire_bytes_per_dirty_byte": ratio(checkpoints.wire_bytes, checkpoints.dirty_bytes),
            "boot_ms": self.boot.as_millis(),
            "seed": seed,
        })
    }
}

fn text(summary: &Value) -> String {
    let rate = &summary["transactions_per_second"];
    let mut text = format!(
        "{} transactions acknowledged, {} lost; {} connections, {} broken; {} wrong answers; {} rows audited\n",
        summary["acknowledged"],
        summary["lost"],
        summary["connections"],
        summary["resets"],
        summary["wrong"],
        summary["audited"],
    );
    for kind in ["failovers", "switchovers"] {
        let moves = &summary[kind];
        if moves["count"] == 0 {
            continue;
        }
        let (stall, running) = (&moves["stall_ms"], &moves["running_ms"]);
        text.push_str(&format!(
            "{} {kind}: {} transactions acknowledged, {} lost, {} connections broken, {} wrong answers\n  \
             longest stall     p50 {} ms, p99 {} ms, max {} ms\n  \
             until it runs     p50 {} ms, p99 {} ms, max {} ms\n",
            moves["count"],
            moves["acknowledged"],
            moves["lost"],
            moves["resets"],
            moves["wrong"],
            stall["p50"],
            stall["p99"],
            stall["max"],
            running["p50"],
            running["p99"],
            running["max"],
        ));
    }
    text.push_str(&format!(
        "transactions/s      {} protected, {} unprotected\n\
         on the wire         {} bytes for each dirty byte\n\
         seed {}\n",
        rate["protected"],
        rate["unprotected"],
        summary["wire_bytes_per_dirty_byte"],
        summary["seed"],
    ));
    for complaint in summary["complaints"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "BROKEN  {}\n",
            complaint.as_str().unwrap_or_default()
        ));
    }
    text
}

#[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
fn ratio(a: u64, b: u64) -> f64 {
    (a as f64 / b.max(1) as f64 * 100.0).round() / 100.0
}
