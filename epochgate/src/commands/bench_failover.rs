//! `epochgate bench failover`: kills the source again and again, at random instants and between every two steps of a
//! commit, and lets the witness judge each time.

mod markdown;
mod picture;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use coordinator::report::Report;
use indicatif::ProgressBar;
use nbd_server::failpoint;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::bench::output::styled;
use crate::bench::plot;
use crate::cli::{FailoverArgs, LabStorage};
use crate::exit::Usage;
use crate::lab::failover::{Outcome, judge, until_protected, until_witness_works};
use crate::lab::layout::Layout;
use crate::lab::seen::Seen;
use crate::lab::site::is_interruption;
use crate::lab::witness::Verdict;
use crate::lab::{Site, Who};
use crate::output::spread;

/// A kill from outside, at an instant that no step of the commit decides.
const RANDOM: &str = "random";

pub(crate) fn run(args: &FailoverArgs) -> anyhow::Result<ExitCode> {
    crate::runtime::interrupt_on_signals()?;
    let kills = kills(args.at.as_deref())?;
    let seed = args.seed.unwrap_or_else(|| rand::rng().random());
    let mut rng = StdRng::seed_from_u64(seed);
    let bar = progress(args);
    let mut tally = Tally::default();
    for run in 0..args.runs {
        let kill = kills[run as usize % kills.len()];
        bar.set_message(kill.to_owned());
        match one(args, kill, &mut rng) {
            Ok((outcome, seen)) => tally.add(kill, &outcome, &seen),
            Err(error) if is_interruption(&error) => return Err(error),
            Err(error) => tally.fail(kill, &format!("{error:#}")),
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let summary = tally.summary(args.runs, seed);
    if let Some(path) = &args.svg {
        plot::bars(
            path,
            &picture::panels(&tally.detect, &tally.resume, &tally.failover),
        )?;
    }
    if args.json {
        println!("{summary}");
    } else if args.markdown {
        print!("{}", markdown::section(args, &summary));
    } else {
        tally.print(args.runs, &summary);
    }
    Ok(if tally.good() == args.runs {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Random kills and the failpoints, so that half of all runs are random.
fn kills(at: Option<&str>) -> anyhow::Result<Vec<&str>> {
    let points = coordinator::failpoints::SOURCE;
    match at {
        None => Ok(points.iter().flat_map(|point| [RANDOM, *point]).collect()),
        Some(name) if name == RANDOM || points.contains(&name) => Ok(vec![name]),
        Some(name) => Err(Usage(format!(
            "there is no failpoint `{name}`; there are {RANDOM}, {}",
            points.join(", ")
        ))
        .into()),
    }
}

fn one(args: &FailoverArgs, kill: &str, rng: &mut StdRng) -> anyhow::Result<(Outcome, Seen)> {
    let layout = Layout {
        nas: args.storage == LabStorage::Nfs,
        ..Layout::default()
    };
    let mut site = Site::with(&args.lab, &layout, Vec::new())?;
    let result = play(
        &mut site,
        kill,
        args.nas_stall.map(Duration::from_secs),
        rng,
    );
    let bad = result.as_ref().map_or(true, |(outcome, _)| !outcome.good());
    if args.keep
        && bad
        && let Some(kept) = site.keep()
    {
        eprintln!("epochgate: kept {}", kept.display());
    }
    result
}

fn play(
    site: &mut Site,
    kill: &str,
    stall: Option<Duration>,
    rng: &mut StdRng,
) -> anyhow::Result<(Outcome, Seen)> {
    let (before, killed_at) = if kill == RANDOM {
        let before = protect(site, &[])?;
        trouble_nas(site, stall)?;
        wait(
            site,
            Duration::from_micros(rng.random_range(200_000..1_500_000)),
        )?;
        let before = site.serial(Who::Source).latest().unwrap_or(before);
        let killed_at = site.kill_source();
        (before, Some(killed_at))
    } else {
        let hit: u32 = rng.random_range(1..40);
        let go = site.path().join("failpoint");
        protect(
            site,
            &[
                (failpoint::VARIABLE.to_owned(), format!("{kill}:{hit}")),
                (failpoint::WHEN.to_owned(), go.display().to_string()),
            ],
        )?;
        trouble_nas(site, stall)?;
        std::fs::write(&go, "")?;
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while !site.ended(Who::Source) {
            site.next_event(Duration::from_millis(5))?;
            if std::time::Instant::now() > deadline {
                bail!("the source never came to failpoint {kill} for the {hit}th time");
            }
        }
        // Its QEMU dies with it; this makes sure that it did.
        site.kill_source();
        let Some(before) = site.serial(Who::Source).latest() else {
            bail!("the guest's witness had said nothing when the source died");
        };
        (before, None)
    };
    let outcome = judge(site, &before, killed_at, |_| {})?;
    Ok((outcome, site.seen().clone()))
}

/// Boots the guest, and protects it once its witness is at work: a boot under checkpoints takes longer and proves
/// nothing more.
fn protect(site: &mut Site, env: &[(String, String)]) -> anyhow::Result<Verdict> {
    site.start_source(env)?;
    until_witness_works(site, 50)?;
    site.start_standby()?;
    until_protected(site, |_| {})?;
    until_witness_works(site, 50)
}

/// The NAS stands still for a while and goes on, then its server is killed and started again, all while the guest works.
fn trouble_nas(site: &mut Site, stall: Option<Duration>) -> anyhow::Result<()> {
    let Some(stall) = stall else { return Ok(()) };
    let Some(nas) = site.nas() else {
        return Err(Usage("--nas-stall needs --storage nfs".to_owned()).into());
    };
    nas.freeze()?;
    wait(site, stall)?;
    if let Some(nas) = site.nas() {
        nas.thaw();
    }
    wait(site, Duration::from_millis(500))?;
    if let Some(nas) = site.nas() {
        nas.kill();
        nas.start_server()?;
    }
    let committed = site.seen().committed;
    site.wait_for(
        Duration::from_secs(60),
        "an epoch to commit again",
        |_, report| matches!(report, Report::Committed { epoch, .. } if epoch.0 > committed),
    )?;
    Ok(())
}

fn wait(site: &mut Site, length: Duration) -> anyhow::Result<()> {
    let end = std::time::Instant::now() + length;
    while std::time::Instant::now() < end {
        site.next_event(Duration::from_millis(1))?;
    }
    Ok(())
}

fn progress(args: &FailoverArgs) -> ProgressBar {
    if args.json || args.markdown {
        return ProgressBar::hidden();
    }
    styled(ProgressBar::new(args.runs.into()))
}

#[derive(Debug, Default)]
struct Tally {
    resumed: u32,
    good: u32,
    mismatches: u64,
    blocks_checked: u64,
    committed_lost: u32,
    failures: Vec<String>,
    by_kill: BTreeMap<String, u32>,
    pauses: Vec<coordinator::report::Pause>,
    wire_bytes: Vec<u64>,
    commit1: Vec<u64>,
    commit2: Vec<u64>,
    detect: Vec<u64>,
    resume: Vec<u64>,
    parts: [Vec<u64>; 3],
    failover: Vec<u64>,
    qemu: String,
    dirty_tracker: String,
}

impl Tally {
    fn add(&mut self, kill: &str, outcome: &Outcome, seen: &Seen) {
        self.resumed += 1;
        self.mismatches += outcome.mismatches;
        self.blocks_checked += outcome.blocks_checked;
        if outcome.resumed_epoch < outcome.committed {
            self.committed_lost += 1;
        }
        if outcome.good() {
            self.good += 1;
            *self.by_kill.entry(kill.to_owned()).or_default() += 1;
        } else {
            self.failures.push(format!("{kill}: {outcome:?}"));
        }
        self.pauses.extend(&seen.pauses);
        self.wire_bytes.extend(&seen.wire_bytes);
        self.commit1.extend(&seen.commit1);
        self.commit2.extend(&seen.commit2);
        self.detect.extend(outcome.detect_us);
        self.failover.extend(outcome.failover_us);
        self.resume.push(outcome.resume_us);
        for (all, part) in self.parts.iter_mut().zip(outcome.parts_us) {
            all.push(part);
        }
        self.qemu.clone_from(&seen.qemu);
        self.dirty_tracker.clone_from(&seen.dirty_tracker);
    }

    fn fail(&mut self, kill: &str, why: &str) {
        self.failures.push(format!("{kill}: {why}"));
    }

    fn good(&self) -> u32 {
        self.good
    }

    fn summary(&self, runs: u32, seed: u64) -> Value {
        let part =
            |f: fn(&coordinator::report::Pause) -> u64| spread(self.pauses.iter().map(f).collect());
        json!({
            "runs": runs,
            "resumed": self.resumed,
            "good": self.good,
            "mismatches": self.mismatches,
            "blocks_checked": self.blocks_checked,
            "committed_epochs_lost": self.committed_lost,
            "kills": self.by_kill,
            "checkpoints": self.pauses.len(),
            "pause_ms": part(|p| p.total),
            "pause_parts_ms": {
                "stop": part(|p| p.stop),
                "seal": part(|p| p.seal),
                "scan": part(|p| p.scan),
                "copy": part(|p| p.copy),
                "device_state": part(|p| p.device_state),
                "resume": part(|p| p.resume),
            },
            "commit1_ms": spread(self.commit1.clone()),
            "commit2_ms": spread(self.commit2.clone()),
            "checkpoint_bytes": {
                "mean": self.wire_bytes.iter().sum::<u64>() / self.wire_bytes.len().max(1) as u64,
            },
            "detect_ms": spread(self.detect.clone()),
            "resume_ms": spread(self.resume.clone()),
            "resume_parts_ms": {
                "takeover": spread(self.parts[0].clone()),
                "merge": spread(self.parts[1].clone()),
                "device_state": spread(self.parts[2].clone()),
            },
            "failover_ms": spread(self.failover.clone()),
            "qemu": self.qemu,
            "dirty_tracker": self.dirty_tracker,
            "seed": seed,
            "failures": self.failures,
        })
    }

    fn print(&self, runs: u32, summary: &Value) {
        println!(
            "{} of {runs} failovers good; {} blocks checked, {} mismatches; {} lost a committed epoch",
            self.good, self.blocks_checked, self.mismatches, self.committed_lost
        );
        for key in ["pause_ms", "detect_ms", "resume_ms", "failover_ms"] {
            let s = &summary[key];
            println!(
                "{key:>12}  p50 {:>8}  p99 {:>8}  max {:>8}",
                s["p50"], s["p99"], s["max"]
            );
        }
        println!(
            "QEMU {}, dirty pages by {}, seed {}",
            self.qemu, self.dirty_tracker, summary["seed"]
        );
        for failure in &self.failures {
            println!("FAILED  {failure}");
        }
    }
}
