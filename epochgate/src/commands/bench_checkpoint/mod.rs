//! `epochgate bench checkpoint`: how long a loaded guest stands still for a checkpoint, part by part, how many of them a second can be
//! had, and what stock QEMU comes to that is made to do the same. All take turns, so that whatever else the machine does meets
//! them alike.

mod ours;
mod peer;
mod report;
mod slope;
mod stock;

use std::process::ExitCode;

use clap::ValueEnum;
use indicatif::ProgressBar;

use ours::Runs;
use peer::PeerRuns;

use crate::bench::output::{output, styled};
use crate::bench::plot;
use crate::cli::checkpoint::CheckpointArgs;
use crate::exit::Usage;
use crate::lab::site::guest_folder;

/// All that was measured.
#[derive(Debug, Default)]
struct Figures {
    /// At the rates that were asked for.
    points: Vec<Runs>,
    /// As fast as possible.
    fastest: Vec<Runs>,
    peers: Vec<PeerRuns>,
    /// Blocks that an unprotected guest's witness writes a second.
    unprotected: Vec<f64>,
}

pub(crate) fn run(args: &CheckpointArgs) -> anyhow::Result<ExitCode> {
    crate::runtime::interrupt_on_signals()?;
    let guest = guest_folder(&args.lab)?;
    if args.ram_mib().iter().any(|mib| *mib < 96) {
        return Err(Usage("the guest needs 96 MiB of RAM".to_owned()).into());
    }
    let mut figures = Figures::new(args);
    let bar = progress(args, &figures);
    for repeat in 0..args.repeats {
        // There and back, so that nothing is always first.
        let back = repeat % 2 == 1;
        for point in in_order(&mut figures.points, back) {
            bar.set_message(point.name());
            let run = ours::at_a_rate(args, point)?;
            figures.unprotected.push(run.unprotected);
            point.add(run);
            bar.inc(1);
        }
        for fastest in in_order(&mut figures.fastest, back) {
            bar.set_message(format!("{}, as fast as possible", fastest.name()));
            let run = ours::as_fast_as_possible(args, fastest)?;
            figures.unprotected.push(run.unprotected);
            fastest.add(run);
            bar.inc(1);
        }
        for mib in args.ram_mib() {
            if args.peers.is_empty() {
                break;
            }
            bar.set_message(format!("{mib} MiB, stock QEMU"));
            let these = figures.peers.iter_mut().filter(|peer| peer.mib == mib);
            peer::run(args, &guest, mib, &mut these.collect::<Vec<_>>())?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let summary = report::summary(args, &figures);
    if let Some(path) = &args.svg {
        plot::bars(path, &report::panels(&summary))?;
    }
    output(
        &args.figures,
        &summary,
        &report::markdown(&summary),
        &report::text(&summary),
    )?;
    let measured = figures.points.iter().all(Runs::measured);
    Ok(if measured {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn in_order(runs: &mut [Runs], back: bool) -> Vec<&mut Runs> {
    let mut all: Vec<&mut Runs> = runs.iter_mut().collect();
    if back {
        all.reverse();
    }
    all
}

impl Figures {
    fn new(args: &CheckpointArgs) -> Self {
        let mut figures = Self::default();
        for mib in args.ram_mib() {
            for way in &args.ways {
                for interval_ms in args.intervals_ms() {
                    figures.points.push(Runs::new(mib, *way, interval_ms));
                }
                if !args.no_max_rate {
                    figures
                        .fastest
                        .push(Runs::new(mib, *way, ours::SHORTEST_MS));
                }
            }
            for peer in &args.peers {
                figures.peers.push(PeerRuns::new(mib, *peer));
            }
        }
        figures
    }
}

fn progress(args: &CheckpointArgs, figures: &Figures) -> ProgressBar {
    if args.figures.json.is_some() || args.figures.markdown.is_some() {
        return ProgressBar::hidden();
    }
    let stock = if args.peers.is_empty() {
        0
    } else {
        args.ram_mib().len()
    };
    let each = figures.points.len() + figures.fastest.len() + stock;
    styled(ProgressBar::new(u64::from(args.repeats) * each as u64))
}

/// The name of an option's value.
fn name(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}
