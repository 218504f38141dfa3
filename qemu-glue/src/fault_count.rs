//! How many page faults a process has had. A page that is write-protected can't be written without one, so as long as the number
//! stays the same, nothing that is protected was written: neither by the process nor by the kernel on its behalf
//! (`mm_account_fault` in the kernel's mm/memory.c counts them for the thread, also in system calls).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// More than a line of `/proc/PID/stat` can have.
const LINE: usize = 4096;

/// The count of one process, all threads together.
#[derive(Debug)]
pub(crate) struct FaultCount {
    stat: File,
}

impl FaultCount {
    /// Of the process `pid`. It stays that one, also if its number is used again.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        let stat = File::open(format!("/proc/{pid}/stat"))?;
        Ok(FaultCount { stat })
    }

    /// The number of now. None: the process is gone.
    pub(crate) fn now(&self) -> Option<u64> {
        let mut line = [0; LINE];
        let length = self.stat.read_at(&mut line, 0).ok()?;
        parse(line.get(..length)?)
    }
}

/// Minor and major faults: the 10th and the 12th field (proc_pid_stat(5)). The second, the name of the program, is in parentheses and
/// may have some of its own.
fn parse(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line.rsplit(|byte| *byte == b')').next()?).ok()?;
    let mut fields = line.split_ascii_whitespace().skip(7);
    let minor: u64 = fields.next()?.parse().ok()?;
    let major: u64 = fields.nth(1)?.parse().ok()?;
    minor.checked_add(major)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_kinds_count_whatever_the_program_is_called() {
        let line = b"77 (a) R (b\xff) S 1 2 3 4 5 6 100 200 30 400 9 9";
        assert_eq!(parse(line), Some(130));
        assert_eq!(parse(b"77 (a) S 1 2 3"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn a_process_that_is_gone_has_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let count = FaultCount::of(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(count.now(), None);
    }
}
