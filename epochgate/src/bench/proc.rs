//! What /proc says of a process, alone or with all its descendants: CPU time, memory, bytes written to storage.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

/// CPU time of a process tree: user and system time of all its threads, also of those that have ended, and of children
/// that have ended and were waited for. In steps of the system's clock tick (10 ms).
pub(crate) fn cpu_of_tree(pid: u32) -> anyhow::Result<Duration> {
    let mut ticks = 0;
    for pid in tree(pid) {
        // A child that ends between the listing and the look is counted by its parent.
        if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            let times = ticks_of(&stat).context("/proc/PID/stat has another form than expected")?;
            ticks += times.iter().sum::<u64>();
        }
    }
    Ok(time_of(ticks))
}

/// CPU time of a process alone, all its threads; None if it is gone.
pub(crate) fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let [user, system, ..] = ticks_of(&stat)?;
    Some(time_of(user + system))
}

fn time_of(ticks: u64) -> Duration {
    let per_second = rustix::param::clock_ticks_per_second();
    Duration::from_millis(ticks * 1000 / per_second.max(1))
}

/// utime, stime, cutime and cstime of a line of /proc/PID/stat, in ticks.
fn ticks_of(stat: &str) -> Option<[u64; 4]> {
    // The name stands in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let times: Vec<u64> = fields
        .get(11..15)?
        .iter()
        .map(|time| time.parse().ok())
        .collect::<Option<_>>()?;
    times.try_into().ok()
}

/// The process and its descendants.
fn tree(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
    }
    found
}

/// A number of kibibytes in /proc/PID/status, in bytes: `VmRSS`, `VmHWM`.
pub(crate) fn memory(pid: u32, key: &str) -> anyhow::Result<u64> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let status = std::fs::read_to_string(&path).context("the gateway is gone")?;
    of_kib(&status, key).with_context(|| format!("{} has no {key}", path.display()))
}

/// Memory that programs can have without anything being swapped out, in bytes.
pub(crate) fn memory_available() -> anyhow::Result<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo can't be read")?;
    of_kib(&info, "MemAvailable").context("/proc/meminfo has no MemAvailable")
}

/// A line `KEY:  NUMBER kB` of a text of the kernel, in bytes.
fn of_kib(text: &str, key: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = value.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Bytes that a process has caused to be written to storage: `write_bytes` of /proc/PID/io.
pub(crate) fn written(pid: u32) -> anyhow::Result<u64> {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io"))
        .context("/proc/PID/io of the gateway can't be read")?;
    io.lines()
        .find_map(|line| line.strip_prefix("write_bytes:"))
        .and_then(|value| value.trim().parse().ok())
        .context("/proc/PID/io has no write_bytes")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_behind_any_name() {
        let stat = "9 (a) b) S 1 9 9 0 -1 4 135 415 0 0 88 2 3 16 20 0 1 0 1311085 12328960";
        assert_eq!(ticks_of(stat), Some([88, 2, 3, 16]));
        assert_eq!(ticks_of("9 (a"), None);
    }

    #[test]
    fn the_time_of_a_child_counts() {
        let before = cpu_of_tree(std::process::id()).unwrap();
        let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        std::process::Command::new("sh")
            .args(["-c", busy])
            .status()
            .unwrap();
        assert!(cpu_of_tree(std::process::id()).unwrap() > before);
        assert!(memory(std::process::id(), "VmRSS").unwrap() > 1 << 20);
    }
}
