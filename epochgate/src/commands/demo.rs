//! `epochgate demo`: the whole thing on this machine, as a timeline that a person can follow.

use std::process::ExitCode;
use std::time::Duration;

use coordinator::report::{Report, Stamped};
use rand::Rng;
use serde_json::json;

use crate::cli::DemoArgs;
use crate::lab::failover::{self, Outcome};
use crate::lab::seen::Seen;
use crate::lab::site;
use crate::lab::timeline::Timeline;
use crate::lab::witness::Verdict;
use crate::lab::{Site, Who};
use crate::output::{bytes, millis, percentile};

pub(crate) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    crate::runtime::interrupt_on_signals()?;
    let stage = Timeline::new(args.json);
    stage.say("a gateway, a standby and a source, three processes on this machine");
    let mut site = Site::start(&args.lab)?;
    let result = play(args, &mut site, &stage);
    let worth_a_look = match &result {
        Ok((_, outcome, _)) => !outcome.good(),
        Err(error) => !site::is_interruption(error),
    };
    if (args.keep || worth_a_look)
        && let Some(kept) = site.keep()
    {
        eprintln!(
            "epochgate: all configuration and logs are kept in {}",
            kept.display()
        );
    }
    let (before, outcome, seen) = result?;
    stage.verdict(&before, &outcome);
    if args.json {
        println!("{}", summary(&outcome, &seen));
    }
    Ok(if outcome.good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn play(
    args: &DemoArgs,
    site: &mut Site,
    stage: &Timeline,
) -> anyhow::Result<(Verdict, Outcome, Seen)> {
    stage.say(&format!(
        "disks served over NBD from {}; booting a guest with {} MiB",
        site.path().display(),
        args.lab.memory
    ));
    site.start_standby()?;
    site.start_source(&[])?;
    let mut bar = None;
    failover::until_protected(site, |report| stage.follow_start(report, &mut bar))?;
    let before = failover::until_witness_works(site, 50)?;
    stage.say(&format!(
        "the guest's witness is at work: {} blocks written, {} checked, {} mismatches",
        before.writes, before.checked, before.mismatches
    ));
    stage.epochs(site, Duration::from_secs(args.seconds))?;
    // Anywhere inside an epoch.
    std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..50_000)));
    let before = site.serial(Who::Source).latest().unwrap_or(before);
    let killed_at = site.kill_source();
    let seen = site.seen().clone();
    stage.say_at(killed_at, &format!(
        "KILLED the source: SIGKILL to its QEMU and its coordinator; last epoch reported as committed: {}",
        seen.committed
    ));
    let outcome = failover::judge(site, &before, Some(killed_at), |resumed| {
        stage.took_over(killed_at, resumed);
        stage.say("the witness compares every block of both disks with its memory ...");
    })?;
    Ok((before, outcome, seen))
}

/// What `--json` prints.
fn summary(outcome: &Outcome, seen: &Seen) -> serde_json::Value {
    let mut pauses: Vec<u64> = seen.pauses.iter().map(|p| p.total).collect();
    pauses.sort_unstable();
    let mean = seen.wire_bytes.iter().sum::<u64>() / (seen.wire_bytes.len().max(1) as u64);
    json!({
        "epochs": seen.epochs,
        "pause_ms": {
            "p50": millis(percentile(&pauses, 50)),
            "p99": millis(percentile(&pauses, 99)),
            "max": millis(percentile(&pauses, 100)),
        },
        "checkpoint_bytes": { "mean": mean },
        "detect_ms": outcome.detect_us.map(millis),
        "resume_ms": millis(outcome.resume_us),
        "failover_ms": outcome.failover_us.map(millis),
        "witness": {
            "blocks_checked": outcome.blocks_checked,
            "mismatches": outcome.mismatches,
            "good": outcome.witness_good,
        },
        "committed_epoch": outcome.committed,
        "resumed_epoch": outcome.resumed_epoch,
        "qemu": seen.qemu,
        "dirty_tracker": seen.dirty_tracker,
        "device_state": seen.device_state,
    })
}

impl Timeline {
    /// Shows what the last epochs were like, once a second.
    fn epochs(&self, site: &mut Site, length: Duration) -> anyhow::Result<()> {
        let end = std::time::Instant::now() + length;
        let mut next_line = std::time::Instant::now() + Duration::from_secs(1);
        let (mut count, mut pauses, mut wire, mut disk, mut last) = (0u64, Vec::new(), 0, 0, 0);
        while std::time::Instant::now() < end {
            let event = site.next_event(Duration::from_millis(20))?;
            match event {
                Some((
                    Who::Source,
                    Stamped {
                        report: Report::Packed { wire_bytes, .. },
                        ..
                    },
                )) => {
                    wire += wire_bytes;
                }
                Some((
                    Who::Source,
                    Stamped {
                        report:
                            Report::Captured {
                                epoch,
                                pause_us,
                                disk_bytes,
                                ..
                            },
                        ..
                    },
                )) => {
                    count += 1;
                    pauses.push(pause_us.total);
                    disk += disk_bytes;
                    last = epoch.0;
                }
                _ => {}
            }
            if std::time::Instant::now() >= next_line && count > 0 {
                next_line += Duration::from_secs(1);
                pauses.sort_unstable();
                self.say(&format!(
                    "epoch {last:>5}  {count:>3} this second, pause p50 {:>5.2} ms max {:>6.2} ms, {} of memory each, {} of disk each",
                    millis(percentile(&pauses, 50)),
                    millis(percentile(&pauses, 100)),
                    bytes(wire / count),
                    bytes(disk / count),
                ));
                (count, wire, disk) = (0, 0, 0);
                pauses.clear();
            }
        }
        Ok(())
    }

    fn verdict(&self, before: &Verdict, outcome: &Outcome) {
        self.say(&format!(
            "witness: {} blocks checked since, {} mismatches, memory {}, run {} goes on",
            outcome.blocks_checked,
            outcome.mismatches,
            if outcome.witness_good {
                "good"
            } else {
                "NOT GOOD"
            },
            before.run
        ));
        for complaint in &outcome.complaints {
            self.say(&format!("  {complaint}"));
        }
        self.say(if outcome.good() {
            "the VM survived its host: nothing that was committed is lost"
        } else {
            "THE VM DID NOT SURVIVE AS IT SHOULD"
        });
    }
}
