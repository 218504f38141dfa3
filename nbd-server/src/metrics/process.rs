//! What the system says about this process.

use rustix::time::{ClockId, clock_gettime};

/// Resident memory and threads, and the time on processors.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    /// Bytes of memory that are resident.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Seconds on processors, of all threads.
    pub cpu_seconds: f64,
}

impl Process {
    /// Asks the system. What it does not say is zero.
    pub fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|rest| rest.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        #[allow(
            clippy::cast_precision_loss,
            reason = "seconds of a process fit exactly"
        )]
        let cpu_seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        Self {
            resident_bytes: field("VmRSS:").saturating_mul(1024),
            threads: field("Threads:"),
            cpu_seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_asks_uses_something() {
        let process = Process::now();
        assert!(process.resident_bytes > 100 << 10, "{process:?}");
        assert!(
            process.threads > 0 && process.cpu_seconds > 0.0,
            "{process:?}"
        );
    }
}
