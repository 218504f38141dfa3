//! `epochgate demo-db`: a database in a guest that loses its host, and clients that keep their connections.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use coordinator::report::Report;
use rand::Rng;
use serde_json::json;

use crate::cli::database::DemoDbArgs;
use crate::database::load::Faults;
use crate::database::stand::{Move, Stand, keep};
use crate::lab::chain::Checkpoints;
use crate::lab::timeline::Timeline;
use crate::output::{bytes, millis, percentile};

/// Running without protection, to compare with.
const UNPROTECTED: Duration = Duration::from_secs(3);

pub(crate) fn run(args: &DemoDbArgs) -> anyhow::Result<ExitCode> {
    crate::runtime::interrupt_on_signals()?;
    let stage = Timeline::new(args.json);
    stage.say("a gateway and two hosts, each in a network namespace of its own on this machine; booting a guest with Redis on an ext4 disk of the gateway");
    let seed = rand::rng().random();
    let mut stand = Stand::start(&args.database, seed, |report| {
        stage.follow_start(report, &mut None);
    })?;
    let story = match play(args, &mut stand, &stage) {
        Ok(story) => story,
        Err(error) => return Err(keep(&mut stand.chain, &args.database, error)),
    };
    if args.database.keep
        && let Some(kept) = stand.chain.keep()
    {
        eprintln!(
            "epochgate: all configuration and logs are kept in {}",
            kept.display()
        );
    }
    let faults = stand.faults();
    stage.say(&format!(
        "{} transactions were acknowledged in all: {} are there, {} lost; {} connections, {} broken",
        story.acknowledged,
        story.acknowledged.saturating_sub(faults.lost),
        faults.lost,
        args.database.connections,
        faults.resets
    ));
    for complaint in &faults.complaints {
        stage.say(&format!("  {complaint}"));
    }
    stage.say(if faults.none() {
        "no client noticed more than a pause"
    } else {
        "THE CLIENTS NOTICED"
    });
    if args.json {
        println!("{}", summary(args, &story, &faults));
    }
    Ok(if faults.none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What there is to tell.
struct Story {
    acknowledged: u64,
    unprotected_per_second: u64,
    protected_per_second: u64,
    failovers: Vec<Move>,
}

fn play(args: &DemoDbArgs, stand: &mut Stand, stage: &Timeline) -> anyhow::Result<Story> {
    stage.say(&format!(
        "Redis answers, {:.1} s after the start; {} clients connect, and never again",
        stand.boot.as_secs_f64(),
        args.database.connections
    ));
    let before = stand.load.answers();
    stand.run(UNPROTECTED)?;
    let unprotected_per_second = (stand.load.answers() - before) / UNPROTECTED.as_secs();
    stage.say(&format!(
        "not protected: {unprotected_per_second} transactions a second are acknowledged, each on disk (appendfsync always)"
    ));
    let mut story = Story {
        acknowledged: 0,
        unprotected_per_second,
        protected_per_second: 0,
        failovers: Vec::new(),
    };
    for round in 1..=args.failovers {
        let mut bar = None;
        stand.protect(|report| stage.follow_start(report, &mut bar))?;
        let rate = watch(args, stand, stage)?;
        if round == 1 {
            story.protected_per_second = rate;
        }
        let failover = fail_over(stand, stage)?;
        story.failovers.push(failover);
    }
    let audit = stand.settle()?;
    story.acknowledged = stand.load.answers();
    stage.say(&format!(
        "the clients stop; an audit has read {} rows",
        audit.rows
    ));
    Ok(story)
}

/// Shows the load and the epochs, once a second. Returns transactions per second.
fn watch(args: &DemoDbArgs, stand: &mut Stand, stage: &Timeline) -> anyhow::Result<u64> {
    stand.chain.take_checkpoints();
    stand.load.take_times_us();
    let (began, first) = (Instant::now(), stand.load.answers());
    for _ in 0..args.seconds {
        let before = stand.load.answers();
        stand.run(Duration::from_secs(1))?;
        let times = stand.load.take_times_us();
        stage.say(&format!(
            "{:>5} transactions this second, half of them within {:>6.2} ms, all within {:>6.2} ms; {}",
            stand.load.answers() - before,
            millis(percentile(&times, 50)),
            millis(percentile(&times, 100)),
            epochs(&stand.chain.take_checkpoints())
        ));
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss
    )]
    let rate = ((stand.load.answers() - first) as f64 / began.elapsed().as_secs_f64()) as u64;
    Ok(rate)
}

fn epochs(checkpoints: &Checkpoints) -> String {
    let count = checkpoints.pauses.len() as u64;
    let mut pauses = checkpoints.pauses.clone();
    pauses.sort_unstable();
    format!(
        "{count} epochs to {}, pause p50 {:.2} ms, {} of memory each",
        checkpoints.captured,
        millis(percentile(&pauses, 50)),
        bytes(checkpoints.wire_bytes / count.max(1))
    )
}

fn fail_over(stand: &mut Stand, stage: &Timeline) -> anyhow::Result<Move> {
    // Anywhere inside an epoch.
    stand.run(Duration::from_micros(rand::rng().random_range(0..200_000)))?;
    let faults = stand.faults();
    let acknowledged = stand.load.answers();
    let failover = stand.fail_over()?;
    let epoch = match &failover.resumed.report {
        Report::Resumed { epoch, .. } => epoch.0,
        _ => 0,
    };
    stage.say_at(failover.began_at, &format!(
        "KILLED the host: SIGKILL to its QEMU and its coordinator, after about {acknowledged} acknowledged transactions"
    ));
    stage.took_over(failover.began_at, &failover.resumed);
    let now = stand.faults();
    stage.say(&format!(
        "all clients go on from epoch {epoch}, {} connections broken, {} acknowledged transactions lost of the {} that were looked at; \
         the longest that one waited was {:.0} ms",
        now.resets - faults.resets,
        now.lost - faults.lost,
        failover.audit.rows,
        millis(failover.stall_us)
    ));
    Ok(failover)
}

/// What `--json` prints.
fn summary(args: &DemoDbArgs, story: &Story, faults: &Faults) -> serde_json::Value {
    let each = |f: fn(&Move) -> u64| -> Vec<f64> {
        story
            .failovers
            .iter()
            .map(|failover| millis(f(failover)))
            .collect()
    };
    json!({
        "acknowledged": story.acknowledged,
        "lost": faults.lost,
        "connections": args.database.connections,
        "resets": faults.resets,
        "wrong": faults.wrong,
        "complaints": faults.complaints,
        "failover_ms": each(|failover| failover.took_us),
        "stall_ms": each(|failover| failover.stall_us),
        "transactions_per_second": {
            "unprotected": story.unprotected_per_second,
            "protected": story.protected_per_second,
        },
        "output": args.database.output.name(),
    })
}
