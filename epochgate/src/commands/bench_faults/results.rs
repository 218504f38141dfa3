//! What the runs came to: one line of JSON each in a file, so that a long matrix can be run in pieces, and the table over them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cells::Cell;
use super::run::Outcome;
use crate::cli::bench::FaultsArgs;

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub cell: String,
    /// The cell without its instant.
    pub row: String,
    pub seed: u64,
    /// How long it took.
    pub ms: u64,
    /// None if it did not come to one.
    pub outcome: Option<Outcome>,
    pub failure: Option<String>,
}

impl Record {
    fn good(&self) -> bool {
        self.outcome.as_ref().is_some_and(Outcome::good)
    }

    fn complaint(&self) -> String {
        match (&self.failure, &self.outcome) {
            (Some(failure), _) => failure.clone(),
            (None, Some(outcome)) => format!(
                "{} mismatches; {}",
                outcome.mismatches,
                outcome.problems.join("; ")
            ),
            (None, None) => String::new(),
        }
    }
}

/// Why how many cells can't run on this machine.
pub(super) fn obstacles(cells: &[Cell]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for why in cells.iter().filter_map(Cell::obstacle) {
        *counts.entry(why).or_default() += 1;
    }
    counts
}

/// All runs so far.
#[derive(Debug, Default)]
pub(super) struct Results {
    records: Vec<Record>,
    /// Runs of this time that say nothing.
    void: u64,
    file: Option<File>,
}

impl Results {
    /// Goes on with the runs in `path`, or begins without a file.
    pub(super) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.with_context(|| format!("{} can't be read", path.display()))?,
        };
        let records = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} has a line that is no run", path.display()))?;
        let file = File::options().create(true).append(true).open(path);
        let file = file.with_context(|| format!("{} can't be written", path.display()))?;
        Ok(Self {
            records,
            void: 0,
            file: Some(file),
        })
    }

    pub(super) fn add(&mut self, record: Record) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", serde_json::to_string(&record)?)?;
        }
        if !record.good() {
            eprintln!(
                "FAILED  {} (seed {}): {}",
                record.cell,
                record.seed,
                record.complaint()
            );
        }
        self.records.push(record);
        Ok(())
    }

    /// A run that says nothing, because this machine was too busy.
    pub(super) fn void(&mut self, cell: &str) {
        eprintln!(
            "VOID    {cell}: a part was silent for too long without a fault; this machine is too busy"
        );
        self.void += 1;
    }

    pub(super) fn runs_of(&self, cell: &str) -> u64 {
        self.records.iter().filter(|r| r.cell == cell).count() as u64
    }

    pub(super) fn all_good(&self) -> bool {
        self.void == 0 && self.records.iter().all(Record::good)
    }

    /// The table, or the same as JSON or Markdown. `cannot` are the cells that can't run here.
    pub(super) fn print(&self, args: &FaultsArgs, seed: u64, cannot: &[Cell]) {
        let rows = self.rows();
        let total = self.total();
        if args.json {
            println!(
                "{}",
                json!({
                    "total": total,
                    "rows": rows,
                    "not_run": cannot.iter().map(Cell::name).collect::<Vec<_>>(),
                    "not_run_because": obstacles(cannot),
                    "failures": self.records.iter().filter(|r| !r.good()).collect::<Vec<_>>(),
                    "void": self.void,
                    "seed": seed,
                })
            );
            return;
        }
        let mut text = format!(
            "{} runs over {} cells, {} good; {} blocks checked, {} mismatches, {} committed epochs lost, {} double owners; {:.1} s a run\n",
            total.runs,
            total.cells,
            total.good,
            total.checked,
            total.mismatches,
            total.lost,
            total.double_owners,
            total.seconds_per_run
        );
        if args.markdown {
            text.push_str("\n| fault | cells | runs | good | at the standby | at the source | down |\n|---|---:|---:|---:|---:|---:|---:|\n");
        }
        for (name, row) in &rows {
            // Writing to a String can't fail.
            let _ = if args.markdown {
                writeln!(
                    text,
                    "| {name} | {} | {} | {} | {} | {} | {} |",
                    row.cells, row.runs, row.good, row.standby, row.source, row.down
                )
            } else {
                writeln!(
                    text,
                    "{name:<50} {:>3} cells {:>4} runs {:>4} good   standby {:>4} source {:>4} down {:>4}",
                    row.cells, row.runs, row.good, row.standby, row.source, row.down
                )
            };
        }
        for record in self.records.iter().filter(|r| !r.good()) {
            let first = record.complaint();
            let first = first.lines().next().unwrap_or_default();
            let _ = writeln!(
                text,
                "FAILED {} (seed {}): {first}",
                record.cell, record.seed
            );
        }
        if self.void > 0 {
            let _ = writeln!(text, "VOID: {} runs; this machine was too busy", self.void);
        }
        for (why, count) in obstacles(cannot) {
            let _ = writeln!(text, "NOT RUN: {count} cells, {why}");
        }
        print!("{text}");
    }

    fn rows(&self) -> BTreeMap<String, Row> {
        let mut rows: BTreeMap<String, Row> = BTreeMap::new();
        let mut cells: BTreeMap<&str, std::collections::BTreeSet<&str>> = BTreeMap::new();
        for record in &self.records {
            cells.entry(&record.row).or_default().insert(&record.cell);
            let row = rows.entry(record.row.clone()).or_default();
            row.runs += 1;
            row.good += u64::from(record.good());
            let ending = record.outcome.as_ref().map_or("", |o| o.ending.as_str());
            match ending {
                "Standby" => row.standby += 1,
                "Source" => row.source += 1,
                "Down" => row.down += 1,
                _ => {}
            }
        }
        for (row, cells) in cells {
            if let Some(row) = rows.get_mut(row) {
                row.cells = cells.len() as u64;
            }
        }
        rows
    }

    #[allow(clippy::cast_precision_loss)]
    fn total(&self) -> Total {
        let cells: std::collections::BTreeSet<&str> =
            self.records.iter().map(|r| r.cell.as_str()).collect();
        let mut total = Total {
            runs: self.records.len() as u64,
            cells: cells.len() as u64,
            ..Total::default()
        };
        let mut ms = 0;
        for record in &self.records {
            total.good += u64::from(record.good());
            ms += record.ms;
            if let Some(outcome) = &record.outcome {
                total.checked += outcome.checked;
                total.mismatches += outcome.mismatches;
                total.lost += u64::from(outcome.lost);
                total.double_owners += u64::from(outcome.double_owner);
            }
        }
        total.seconds_per_run = ms as f64 / 1000.0 / self.records.len().max(1) as f64;
        total
    }
}

#[derive(Debug, Default, Serialize)]
struct Row {
    cells: u64,
    runs: u64,
    good: u64,
    standby: u64,
    source: u64,
    down: u64,
}

#[derive(Debug, Default, Serialize)]
struct Total {
    runs: u64,
    cells: u64,
    good: u64,
    checked: u64,
    mismatches: u64,
    lost: u64,
    double_owners: u64,
    seconds_per_run: f64,
}
