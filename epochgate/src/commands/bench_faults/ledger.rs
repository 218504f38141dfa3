//! The ledger of the matrix: what all runs so far came to, summed per cell, as a text that is kept with the source. Runs of many
//! sessions and machines add up in it; it says which builds they were of.
//!
//! Fields are separated by tabs. Lines with `#build` and `#bad` come first: runs of each build, and each bad run. Then one line for
//! each cell that was ever run, below their headings.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use super::record::{Record, Verdict, row};

const HEADING: &str = "# What all runs of the fault matrix came to, cell by cell (docs/testing.md). Written by \
                       `epochgate bench faults --ledger`.";
const COLUMNS: [&str; 12] = [
    "cell",
    "good",
    "bad",
    "void",
    "standby",
    "source",
    "down",
    "checked",
    "mismatches",
    "lost",
    "double_owners",
    "ms",
];

/// What the runs of a cell came to. Runs that say nothing are in `void` alone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Tally {
    pub good: u64,
    pub bad: u64,
    pub void: u64,
    /// How often the guest went on there in the end.
    pub standby: u64,
    pub source: u64,
    /// How often it was started from its disks.
    pub down: u64,
    /// Blocks that the witness compared.
    pub checked: u64,
    pub mismatches: u64,
    /// Runs in which a committed epoch was gone.
    pub lost: u64,
    pub double_owners: u64,
    /// What they took in all.
    pub ms: u64,
}

impl Tally {
    /// Runs that say something.
    pub(super) fn runs(&self) -> u64 {
        self.good + self.bad
    }

    fn fields(&mut self) -> [&mut u64; 11] {
        [
            &mut self.good,
            &mut self.bad,
            &mut self.void,
            &mut self.standby,
            &mut self.source,
            &mut self.down,
            &mut self.checked,
            &mut self.mismatches,
            &mut self.lost,
            &mut self.double_owners,
            &mut self.ms,
        ]
    }

    pub(super) fn plus(&mut self, mut other: Self) {
        for (mine, its) in self.fields().into_iter().zip(other.fields()) {
            *mine += *its;
        }
    }

    fn add(&mut self, record: &Record) {
        match record.verdict() {
            Verdict::Good => self.good += 1,
            Verdict::Bad => self.bad += 1,
            Verdict::Void => {
                self.void += 1;
                return;
            }
        }
        self.ms += record.ms;
        let Some(outcome) = &record.outcome else {
            return;
        };
        match outcome.ending.as_str() {
            "Standby" => self.standby += 1,
            "Source" => self.source += 1,
            "Down" => self.down += 1,
            _ => {}
        }
        self.checked += outcome.checked;
        self.mismatches += outcome.mismatches;
        self.lost += u64::from(outcome.lost);
        self.double_owners += u64::from(outcome.double_owner);
    }
}

/// Runs of one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Build {
    pub name: String,
    pub good: u64,
    pub bad: u64,
    pub void: u64,
}

/// A run that was bad.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Bad {
    pub build: String,
    pub cell: String,
    pub seed: u64,
    pub why: String,
}

/// All runs so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    builds: Vec<Build>,
    bad: Vec<Bad>,
    cells: BTreeMap<String, Tally>,
}

impl Ledger {
    pub(super) fn add(&mut self, record: &Record) {
        let known = self.builds.iter().position(|b| b.name == record.build);
        let at = known.unwrap_or_else(|| {
            self.builds.push(Build {
                name: record.build.clone(),
                good: 0,
                bad: 0,
                void: 0,
            });
            self.builds.len() - 1
        });
        let build = &mut self.builds[at];
        match record.verdict() {
            Verdict::Good => build.good += 1,
            Verdict::Void => build.void += 1,
            Verdict::Bad => {
                build.bad += 1;
                self.bad.push(Bad {
                    build: record.build.clone(),
                    cell: record.cell.clone(),
                    seed: record.seed,
                    why: record.complaint(),
                });
            }
        }
        let tally = self.cells.entry(record.cell.clone()).or_default();
        tally.add(record);
    }

    pub(super) fn builds(&self) -> &[Build] {
        &self.builds
    }

    pub(super) fn bad(&self) -> &[Bad] {
        &self.bad
    }

    /// Runs of a cell that say something.
    pub(super) fn runs_of(&self, cell: &str) -> u64 {
        self.cells.get(cell).map_or(0, Tally::runs)
    }

    /// The sums of each row: of the cells that differ in the instant alone. With their numbers.
    pub(super) fn rows(&self) -> BTreeMap<&str, (u64, Tally)> {
        let mut rows: BTreeMap<&str, (u64, Tally)> = BTreeMap::new();
        for (cell, tally) in &self.cells {
            let (cells, sum) = rows.entry(row(cell)).or_default();
            *cells += u64::from(tally.runs() > 0);
            sum.plus(*tally);
        }
        rows
    }

    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut ledger = Self::default();
        let mut lines = text.lines().enumerate().filter(|(_, l)| !l.is_empty());
        for (number, line) in &mut lines {
            let broken = || format!("line {} is not one of a ledger: {line}", number + 1);
            let fields: Vec<&str> = line.split('\t').collect();
            match fields[..] {
                ["#build", name, ..] => {
                    let [good, bad, void] = numbers(&fields[2..]).with_context(broken)?;
                    ledger.builds.push(Build {
                        name: name.to_owned(),
                        good,
                        bad,
                        void,
                    });
                }
                ["#bad", build, cell, seed, why] => ledger.bad.push(Bad {
                    build: build.to_owned(),
                    cell: cell.to_owned(),
                    seed: seed.parse().with_context(broken)?,
                    why: why.to_owned(),
                }),
                _ if line.starts_with("# ") => {}
                _ if fields == COLUMNS => {}
                [cell, ..] if !cell.starts_with('#') => {
                    let read: [u64; 11] = numbers(&fields[1..]).with_context(broken)?;
                    let mut tally = Tally::default();
                    for (field, number) in tally.fields().into_iter().zip(read) {
                        *field = number;
                    }
                    let before = ledger.cells.insert(cell.to_owned(), tally);
                    ensure!(before.is_none(), "the ledger has {cell} twice");
                }
                _ => bail!(broken()),
            }
        }
        Ok(ledger)
    }
}

fn numbers<const N: usize>(fields: &[&str]) -> anyhow::Result<[u64; N]> {
    let read: Result<Vec<u64>, _> = fields.iter().map(|field| field.parse()).collect();
    let read = read.context("a number is none")?;
    <[u64; N]>::try_from(read).map_err(|read| anyhow::anyhow!("{} numbers, not {N}", read.len()))
}

impl fmt::Display for Ledger {
    /// As the file has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADING}")?;
        writeln!(f, "# Runs of builds, named by commit: good, bad, void.")?;
        for build in &self.builds {
            let Build {
                name,
                good,
                bad,
                void,
            } = build;
            writeln!(f, "#build\t{name}\t{good}\t{bad}\t{void}")?;
        }
        for Bad {
            build,
            cell,
            seed,
            why,
        } in &self.bad
        {
            writeln!(f, "#bad\t{build}\t{cell}\t{seed}\t{why}")?;
        }
        writeln!(f, "{}", COLUMNS.join("\t"))?;
        for (cell, tally) in &self.cells {
            write!(f, "{cell}")?;
            let mut tally = *tally;
            for number in tally.fields() {
                write!(f, "\t{number}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::commands::bench_faults::run::Outcome;

    fn record(cell: &str, build: &str, problem: Option<&str>) -> Record {
        Record {
            cell: cell.to_owned(),
            build: build.to_owned(),
            seed: 9,
            ms: 100,
            outcome: Some(Outcome {
                ending: "Source".to_owned(),
                checked: 50,
                problems: problem.map(str::to_owned).into_iter().collect(),
                ..Outcome::default()
            }),
            ..Record::default()
        }
    }

    fn some() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.add(&record("running:kill/gateway/random", "a1", None));
        ledger.add(&record(
            "running:kill/gateway/random",
            "a1",
            Some("a\ttab\nand more"),
        ));
        ledger.add(&record("running:kill/gateway/after-x", "b2", None));
        ledger.add(&Record {
            void: true,
            outcome: None,
            ..record("running:eio/images/random", "b2", None)
        });
        ledger.add(&Record {
            outcome: None,
            failure: Some("nobody went on".to_owned()),
            ..record("running:eio/images/random", "b2", None)
        });
        ledger
    }

    #[test]
    fn what_was_written_is_read_again() {
        let ledger = some();
        let again = Ledger::parse(&ledger.to_string()).unwrap();
        assert_eq!(again, ledger);
        assert_eq!(Ledger::parse("").unwrap(), Ledger::default());
    }

    #[test]
    fn runs_add_up_over_sessions() {
        let mut again = Ledger::parse(&some().to_string()).unwrap();
        again.add(&record("running:kill/gateway/random", "a1", None));
        assert_eq!(again.runs_of("running:kill/gateway/random"), 3);
        assert_eq!(again.runs_of("running:eio/images/random"), 1);
        assert_eq!(again.runs_of("running:wake"), 0);
        let rows = again.rows();
        let (cells, kills) = rows["running:kill/gateway"];
        assert_eq!(
            (cells, kills.good, kills.bad, kills.checked),
            (2, 3, 1, 200)
        );
        let (_, eio) = rows["running:eio/images"];
        assert_eq!((eio.good, eio.bad, eio.void, eio.source), (0, 1, 1, 0));
        assert_eq!(again.bad().len(), 2);
        assert_eq!(again.bad()[0].why, "0 mismatches; a tab");
        let builds: Vec<_> = again
            .builds()
            .iter()
            .map(|b| (b.good, b.bad, b.void))
            .collect();
        assert_eq!(builds, [(2, 1, 0), (1, 1, 1)]);
    }

    #[test]
    fn a_file_that_is_no_ledger_is_refused() {
        for text in [
            "cell\tgood\n",
            "x\t1\n",
            "#odd\n",
            "#build\tx\t1\n",
            "a b c",
        ] {
            assert!(Ledger::parse(text).is_err(), "{text}");
        }
        let twice = "x\t1\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\n".repeat(2);
        assert!(Ledger::parse(&twice).is_err());
    }
}
