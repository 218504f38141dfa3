//! What a process holds: memory, threads, open files.

use std::fs;

/// Resident memory in bytes.
pub fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:") << 10
}

/// The most that was ever resident, in bytes.
pub fn peak_resident(pid: u32) -> u64 {
    status(pid, "VmHWM:") << 10
}

/// Threads.
pub fn threads(pid: u32) -> u64 {
    status(pid, "Threads:")
}

/// Open files and sockets.
pub fn descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64)
}

fn status(pid: u32, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .expect("the kernel says so for every process")
}
