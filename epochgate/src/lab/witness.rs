//! Reading the guest's serial line: what its witness says of memory and disks.
//!
//! The witness (tests/witness) prints one `W key=value ...` line about five times a second, `MISMATCH ...` when a
//! block is not what its memory says, and a new `run` when it was restarted.

use std::collections::HashMap;
use std::path::PathBuf;

/// One `W` line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Changes if and only if the witness was started anew.
    pub run: String,
    /// Number of the line within this run.
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
    /// Write requests so far.
    pub writes: u64,
}

impl Verdict {
    fn parse(line: &str) -> Option<Self> {
        let fields: HashMap<&str, &str> = line
            .strip_prefix("W ")?
            .split_ascii_whitespace()
            .filter_map(|field| field.split_once('='))
            .collect();
        let number = |key: &str| fields.get(key)?.parse::<u64>().ok();
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
    pub(crate) fn good(&self) -> bool {
        self.mismatches == 0 && self.io_errors == 0 && self.memory_ok
    }
}

/// The serial line of one QEMU, written to a file by it.
#[derive(Debug)]
pub(crate) struct Serial {
    path: PathBuf,
}

impl Serial {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Everything so far. The last line may be incomplete.
    pub(crate) fn text(&self) -> String {
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The newest complete `W` line.
    pub(crate) fn latest(&self) -> Option<Verdict> {
        let text = self.text();
        let complete = &text[..=text.rfind('\n')?];
        complete
            .lines()
            .rev()
            .find_map(|line| Verdict::parse(line.trim()))
    }

    /// Lines that say what is wrong, if any.
    pub(crate) fn complaints(&self) -> Vec<String> {
        const BAD: [&str; 5] = [
            "MISMATCH",
            "MEMORY",
            "IOERROR",
            "WITNESS-EXIT",
            "Kernel panic",
        ];
        self.text()
            .lines()
            .filter(|line| BAD.iter().any(|bad| line.contains(bad)))
            .map(str::to_owned)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "W seq=7 up=1.40 run=9f writes=12 flushes=1 zeros=0 discards=0 reads=3 checked=40 mismatches=0 io_errors=0 mem=ok mem_pages=2 pass=1 sweep_start=1.2";

    #[test]
    fn a_line_of_the_witness_is_understood() {
        let verdict = Verdict::parse(LINE).unwrap_or_default();
        assert_eq!(
            (verdict.seq, verdict.checked, verdict.pass, verdict.good()),
            (7, 40, 1, true)
        );
    }

    #[test]
    fn anything_wrong_is_not_good() {
        for (good, bad) in [
            ("mismatches=0", "mismatches=1"),
            ("mem=ok", "mem=bad"),
            ("io_errors=0", "io_errors=2"),
        ] {
            let verdict = Verdict::parse(&LINE.replace(good, bad));
            assert_eq!(verdict.map(|v| v.good()), Some(false));
        }
    }

    #[test]
    fn other_lines_are_not_verdicts() {
        assert_eq!(Verdict::parse("guest-up 1.0"), None);
        assert_eq!(Verdict::parse("W seq=x"), None);
    }
}
