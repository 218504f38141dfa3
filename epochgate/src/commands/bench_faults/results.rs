//! Where the runs are noted: one line of JSON each in a file, and their sums in a ledger. Several matrices may share a ledger.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::cost::Mean;
use super::ledger::Ledger;
use super::record::{Record, Verdict};

/// The runs so far, and those of this time.
#[derive(Debug, Default)]
pub(super) struct Results {
    ledger: Ledger,
    kept: Option<PathBuf>,
    file: Option<File>,
    /// Of this time.
    bad: u64,
    costs: Mean,
}

impl Results {
    /// Goes on with the sums in `ledger`; without one, with the runs in `file`; else from nothing.
    pub(super) fn open(file: Option<&Path>, ledger: Option<&Path>) -> anyhow::Result<Self> {
        let mut results = Self::default();
        if let Some(path) = file {
            if ledger.is_none() {
                results.ledger = of_records(path)?;
            }
            let opened = File::options().create(true).append(true).open(path);
            let opened = opened.with_context(|| format!("{} can't be written", path.display()))?;
            results.file = Some(opened);
        }
        if let Some(path) = ledger {
            results.ledger = read(path)?;
            results.kept = Some(path.to_owned());
        }
        Ok(results)
    }

    /// Notes a run, and says if it was not good.
    pub(super) fn add(&mut self, record: &Record) -> anyhow::Result<()> {
        if let Some(file) = &mut self.file {
            writeln!(file, "{}", serde_json::to_string(record)?)?;
        }
        match &self.kept {
            Some(path) => self.ledger = add_to(path, record)?,
            None => self.ledger.add(record),
        }
        let Record { cell, seed, .. } = record;
        match record.verdict() {
            Verdict::Good => {}
            Verdict::Bad => {
                self.bad += 1;
                eprintln!("FAILED  {cell} (seed {seed}): {}", record.complaint());
            }
            Verdict::Void => eprintln!(
                "VOID    {cell}: a part was silent for too long without a fault; this machine is too busy"
            ),
        }
        self.costs.add(&record.costs);
        Ok(())
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Bad runs of this time.
    pub(super) fn bad(&self) -> u64 {
        self.bad
    }

    /// The costs of the runs of this time.
    pub(super) fn costs(&self) -> &Mean {
        &self.costs
    }
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        text => text.with_context(|| format!("{} can't be read", path.display())),
    }
}

fn of_records(path: &Path) -> anyhow::Result<Ledger> {
    let mut ledger = Ledger::default();
    for line in text_of(path)?.lines() {
        let record = serde_json::from_str(line);
        ledger
            .add(&record.with_context(|| format!("{} has a line that is no run", path.display()))?);
    }
    Ok(ledger)
}

fn read(path: &Path) -> anyhow::Result<Ledger> {
    let ledger = Ledger::parse(&text_of(path)?);
    ledger.with_context(|| format!("{} is no ledger of the matrix", path.display()))
}

/// Adds a run to the ledger at `path` as it is now, and returns it. Whoever reads it sees it whole.
fn add_to(path: &Path, record: &Record) -> anyhow::Result<Ledger> {
    let update = || -> anyhow::Result<Ledger> {
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        // Of the directory: the file itself is another one after each run.
        let locked = File::open(dir)?;
        locked.lock()?;
        let mut ledger = read(path)?;
        ledger.add(record);
        let new = path.with_extension("new");
        std::fs::write(&new, ledger.to_string())?;
        std::fs::rename(&new, path)?;
        Ok(ledger)
    };
    update().with_context(|| format!("a run can't be added to {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn record(cell: &str) -> Record {
        Record {
            cell: cell.to_owned(),
            build: "b".to_owned(),
            outcome: Some(super::super::run::Outcome::default()),
            ..Record::default()
        }
    }

    #[test]
    fn two_matrices_share_a_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults.tsv");
        let open = || Results::open(None, Some(&path)).unwrap();
        let (mut one, mut other) = (open(), open());
        one.add(&record("x:y/a")).unwrap();
        other.add(&record("x:y/a")).unwrap();
        one.add(&record("x:y/b")).unwrap();
        assert_eq!(one.ledger().runs_of("x:y/a"), 2);
        assert_eq!(open().ledger(), one.ledger());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn earlier_runs_count_with_and_without_a_ledger() {
        let dir = tempfile::tempdir().unwrap();
        let (file, ledger) = (dir.path().join("f.jsonl"), dir.path().join("l.tsv"));
        let mut first = Results::open(Some(&file), Some(&ledger)).unwrap();
        first.add(&record("x:y/a")).unwrap();
        let of_file = Results::open(Some(&file), None).unwrap();
        let of_both = Results::open(Some(&file), Some(&ledger)).unwrap();
        assert_eq!(of_file.ledger().runs_of("x:y/a"), 1);
        assert_eq!(of_both.ledger().runs_of("x:y/a"), 1, "not twice");
    }
}
