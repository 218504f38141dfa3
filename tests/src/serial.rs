//! The guest's serial line: what its witness says of memory and disks. The lines are described in
//! tests/witness/src/report.rs.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::waiting::wait_until;

/// One `W` line of the witness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Changes if and only if the witness was started anew.
    pub run: String,
    /// Number of the line within the run.
    pub seq: u64,
    /// Blocks compared with memory.
    pub checked: u64,
    /// Blocks that were not what memory says.
    pub mismatches: u64,
    /// Requests that failed in the guest.
    pub io_errors: u64,
    /// The table in memory has its checksums.
    pub memory_ok: bool,
    /// Completed sweeps over all blocks of all disks.
    pub pass: u64,
    /// Write requests.
    pub writes: u64,
}

impl Verdict {
    fn parse(line: &str) -> Option<Self> {
        let fields: HashMap<&str, &str> = line
            .trim()
            .strip_prefix("W ")?
            .split_ascii_whitespace()
            .filter_map(|field| field.split_once('='))
            .collect();
        let number = |key: &str| fields.get(key)?.parse().ok();
        // The last field of a line: with it the line is complete.
        fields.get("sweep_start")?;
        Some(Self {
            run: (*fields.get("run")?).to_owned(),
            seq: number("seq")?,
            checked: number("checked")?,
            mismatches: number("mismatches")?,
            io_errors: number("io_errors")?,
            memory_ok: *fields.get("mem")? == "ok",
            pass: number("pass")?,
            writes: number("writes")?,
        })
    }

    /// Nothing is wrong in memory and on the disks.
    pub fn good(&self) -> bool {
        self.mismatches == 0 && self.io_errors == 0 && self.memory_ok
    }
}

/// The serial line of one QEMU, which writes it to a file.
#[derive(Debug, Clone)]
pub struct Serial {
    path: PathBuf,
}

impl Serial {
    /// The line in this file. It need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Everything so far. The last line may be incomplete.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// The newest `W` line.
    pub fn latest(&self) -> Option<Verdict> {
        self.text().lines().rev().find_map(Verdict::parse)
    }

    /// Lines that say what is wrong.
    pub fn complaints(&self) -> Vec<String> {
        const BAD: [&str; 6] = [
            "MISMATCH",
            "MEMORY",
            "IOERROR",
            "WITNESS-EXIT",
            "INSMOD-FAILED",
            "Kernel panic",
        ];
        self.text()
            .lines()
            .filter(|line| BAD.iter().any(|bad| line.contains(bad)))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for a `W` line that is wanted.
    #[track_caller]
    pub fn wait(&self, what: &str, wanted: impl Fn(&Verdict) -> bool) -> Verdict {
        wait_until(
            what,
            || self.latest().filter(&wanted),
            || format!("the guest said:\n{}", self.text()),
        )
    }

    /// Waits until the guest works: it has written, and swept over all blocks once, and all is well.
    #[track_caller]
    pub fn at_work(&self) -> Verdict {
        let verdict = self.wait("the witness to work", |now| {
            now.writes >= 50 && now.pass >= 1
        });
        assert!(verdict.good(), "{:?}", self.complaints());
        verdict
    }

    /// Waits until the guest has written more than it has by now.
    #[track_caller]
    pub fn goes_on(&self) -> Verdict {
        let before = self.latest().map_or(0, |verdict| verdict.writes);
        self.wait("the guest to go on", |now| now.writes >= before + 20)
    }

    /// Waits for the verdict over a whole sweep of all disks that began after this call. The sweep under way does not
    /// count, so two must end. A witness that found something, or was started anew, is reported at once.
    #[track_caller]
    pub fn whole_sweep(&self, run: &str) -> Verdict {
        let first = self.wait("the witness", |_| true);
        self.wait("a whole sweep of the witness", |now| {
            now.pass >= first.pass + 2 || now.run != run || now.mismatches > 0
        })
    }

    /// Asserts that the guest of `before` runs on here and that a whole sweep that begins now finds nothing wrong.
    #[track_caller]
    pub fn must_be_content(&self, before: &Verdict) -> Verdict {
        let now = self.whole_sweep(&before.run);
        assert_eq!(now.run, before.run, "the guest was started anew");
        assert!(now.good(), "{now:?} {:#?}", self.complaints());
        assert!(now.checked > before.checked, "nothing was checked");
        assert_eq!(self.complaints(), Vec::<String>::new());
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "W seq=7 up=1.40 run=9f disks=2 writes=12 flushes=1 zeros=0 discards=0 reads=3 checked=40 mismatches=0 io_errors=0 mem=ok mem_pages=2 pass=1 sweep_start=1.20";

    #[test]
    fn a_whole_line_is_understood_and_a_torn_one_is_not() {
        let verdict = Verdict::parse(LINE).unwrap();
        assert_eq!((verdict.seq, verdict.checked, verdict.pass), (7, 40, 1));
        assert!(verdict.good());
        assert_eq!(Verdict::parse(&LINE[..LINE.len() - 17]), None);
        assert_eq!(Verdict::parse("guest-up 1.0"), None);
    }

    #[test]
    fn anything_wrong_is_not_good() {
        for (good, bad) in [
            ("mismatches=0", "mismatches=1"),
            ("mem=ok", "mem=bad"),
            ("io_errors=0", "io_errors=2"),
        ] {
            assert!(!Verdict::parse(&LINE.replace(good, bad)).unwrap().good());
        }
    }
}
