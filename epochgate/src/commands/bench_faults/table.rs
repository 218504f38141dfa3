//! The table over all runs so far, for people, as Markdown, or as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::json;

use super::cells::Cell;
use super::ledger::{Ledger, Tally};
use super::results::Results;
use crate::cli::bench::FaultsArgs;

/// The sums over everything.
#[derive(Debug, Default, Serialize)]
struct Total {
    runs: u64,
    /// Cells with a run that says something.
    cells: u64,
    good: u64,
    bad: u64,
    void: u64,
    checked: u64,
    mismatches: u64,
    lost: u64,
    double_owners: u64,
    seconds_per_run: f64,
}

/// A row of the table.
#[derive(Debug, Serialize)]
struct Row {
    cells: u64,
    runs: u64,
    #[serde(flatten)]
    tally: Tally,
}

/// Why how many cells can't run on this machine.
pub(super) fn obstacles(cells: &[Cell]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for why in cells.iter().filter_map(Cell::obstacle) {
        *counts.entry(why).or_default() += 1;
    }
    counts
}

/// Prints it as the options say. `can` are the cells that were asked for and can run here, `cannot` the others.
pub(super) fn print(
    results: &Results,
    args: &FaultsArgs,
    seed: u64,
    can: &[Cell],
    cannot: &[Cell],
) {
    let ledger = results.ledger();
    if args.json {
        println!(
            "{}",
            json!({
                "total": total(ledger),
                "least": least(ledger, can, cannot),
                "rows": rows(ledger),
                "builds": ledger.builds(),
                "not_run": cannot.iter().map(Cell::name).collect::<Vec<_>>(),
                "not_run_because": obstacles(cannot),
                "failures": ledger.bad(),
                "costs": results.costs().per_run(),
                "seed": seed,
            })
        );
        return;
    }
    let mut text = summary(ledger, &least(ledger, can, cannot));
    if args.markdown {
        text.push_str("\n| fault | cells | runs | good | at the standby | at the source | down |\n|---|---:|---:|---:|---:|---:|---:|\n");
    }
    for (name, Row { cells, runs, tally }) in rows(ledger) {
        let Tally {
            good,
            standby,
            source,
            down,
            ..
        } = tally;
        // Writing to a String can't fail.
        let _ = if args.markdown {
            writeln!(
                text,
                "| {name} | {cells} | {runs} | {good} | {standby} | {source} | {down} |"
            )
        } else {
            writeln!(
                text,
                "{name:<50} {cells:>3} cells {runs:>4} runs {good:>4} good   standby {standby:>4} source {source:>4} down {down:>4}"
            )
        };
    }
    text.push_str(&remarks(ledger, args.markdown));
    for (why, count) in obstacles(cannot) {
        let _ = writeln!(text, "NOT RUN: {count} cells, {why}");
    }
    if !args.markdown {
        let _ = writeln!(text, "{}", results.costs().per_run());
    }
    print!("{text}");
}

/// How often cells were run: `[cells, with none, the fewest runs of one]`.
fn least(ledger: &Ledger, can: &[Cell], cannot: &[Cell]) -> BTreeMap<&'static str, u64> {
    let runs = can.iter().chain(cannot);
    let runs: Vec<u64> = runs.map(|cell| ledger.runs_of(&cell.name())).collect();
    let with = |at_least: u64| runs.iter().filter(|runs| **runs >= at_least).count() as u64;
    BTreeMap::from([
        ("cells", runs.len() as u64),
        ("run", with(1)),
        ("five_times", with(5)),
        ("fewest", runs.iter().copied().min().unwrap_or(0)),
    ])
}

fn summary(ledger: &Ledger, least: &BTreeMap<&str, u64>) -> String {
    let total = total(ledger);
    let of = |key: &str| least.get(key).copied().unwrap_or(0);
    format!(
        "{} runs, {} good, {} bad; {} of {} cells were run, {} of them five times or more; {} blocks checked, {} mismatches, \
         {} committed epochs lost, {} double owners; {:.1} s a run\n",
        total.runs,
        total.good,
        total.bad,
        of("run"),
        of("cells"),
        of("five_times"),
        total.checked,
        total.mismatches,
        total.lost,
        total.double_owners,
        total.seconds_per_run
    )
}

/// What the rows don't say: bad runs, those that say nothing, and the builds.
fn remarks(ledger: &Ledger, markdown: bool) -> String {
    let mut text = String::new();
    let item = if markdown { "\n- " } else { "" };
    for bad in ledger.bad() {
        let _ = writeln!(
            text,
            "{item}FAILED {} (seed {}, build {}): {}",
            bad.cell, bad.seed, bad.build, bad.why
        );
    }
    let void = total(ledger).void;
    if void > 0 {
        let _ = writeln!(
            text,
            "{item}VOID: {void} runs, not counted; the machine was too busy"
        );
    }
    let builds = ledger.builds().iter();
    let builds: Vec<String> = builds
        .map(|b| {
            format!(
                "{}: {} good, {} bad, {} void",
                b.name, b.good, b.bad, b.void
            )
        })
        .collect();
    if !builds.is_empty() {
        let _ = writeln!(text, "{item}Builds: {}", builds.join("; "));
    }
    text
}

fn rows(ledger: &Ledger) -> BTreeMap<&str, Row> {
    let rows = ledger.rows().into_iter();
    rows.map(|(name, (cells, tally))| {
        let runs = tally.runs();
        (name, Row { cells, runs, tally })
    })
    .collect()
}

#[allow(clippy::cast_precision_loss)]
fn total(ledger: &Ledger) -> Total {
    let mut total = Total::default();
    let mut sum = Tally::default();
    for (cells, tally) in ledger.rows().values() {
        total.cells += cells;
        sum.plus(*tally);
    }
    Total {
        runs: sum.runs(),
        good: sum.good,
        bad: sum.bad,
        void: sum.void,
        checked: sum.checked,
        mismatches: sum.mismatches,
        lost: sum.lost,
        double_owners: sum.double_owners,
        seconds_per_run: sum.ms as f64 / 1000.0 / sum.runs().max(1) as f64,
        ..total
    }
}
