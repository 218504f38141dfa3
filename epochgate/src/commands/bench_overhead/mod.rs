//! `epochgate bench overhead`: what protection costs the guest. Stretches with and without protection alternate in one guest, so that
//! whatever else the machine does meets both alike; each workload of the guest is counted by the clock of the host.

mod case;
mod client;
mod report;
mod stretch;

use std::process::ExitCode;

use indicatif::ProgressBar;

use case::Case;
use stretch::{Bench, Pair};

use crate::bench::output::{output, styled};
use crate::bench::plot;
use crate::cli::overhead::OverheadArgs;
use crate::exit::Usage;
use crate::lab::lan::Lan;
use crate::lab::namespaces;
use crate::lab::site::guest_folder;

pub(crate) fn run(args: &OverheadArgs) -> anyhow::Result<ExitCode> {
    crate::runtime::interrupt_on_signals()?;
    let guest = guest_folder(&args.lab)?;
    let cases = case::all(args);
    if cases.is_empty() {
        return Err(Usage("nothing is left to be measured".to_owned()).into());
    }
    let networked = cases.iter().any(Case::networked);
    if networked {
        namespaces::allowed().map_err(|why| {
            Usage(format!(
                "{why} and taps: run it as root, or with --workloads cpu,memory,disk --gates"
            ))
        })?;
    }
    let bar = progress(args, cases.len());
    let mut measured = Vec::new();
    let mut qemu = String::new();
    for case in cases {
        bar.set_message(case.name());
        let lan = case.networked().then(Lan::start).transpose()?;
        let mut pairs: Vec<Pair> = case.workloads.iter().copied().map(Pair::new).collect();
        let mut bench = Bench::start(args, &case, &guest, lan.as_ref())?;
        qemu.clone_from(&bench.qemu);
        for repeat in 0..args.repeats {
            // Two stretches of a kind follow each other, so that protection changes half as often.
            for protected in [repeat % 2 == 1, repeat % 2 == 0] {
                bench.protect(protected)?;
                for pair in &mut pairs {
                    let sample = bench.sample(pair.workload)?;
                    pair.add(protected, sample);
                }
            }
            bar.inc(1);
        }
        measured.push((case, pairs));
    }
    bar.finish_and_clear();
    let summary = report::summary(args, &measured, &qemu);
    if let Some(path) = &args.svg {
        plot::bars(path, &report::panels(&summary))?;
    }
    output(
        &args.figures,
        &summary,
        &report::markdown(&summary),
        &report::text(&summary),
    )?;
    Ok(ExitCode::SUCCESS)
}

fn progress(args: &OverheadArgs, cases: usize) -> ProgressBar {
    if args.figures.json.is_some() || args.figures.markdown.is_some() {
        return ProgressBar::hidden();
    }
    styled(ProgressBar::new(u64::from(args.repeats) * cases as u64))
}
