//! What the figures depend on: the machine and the versions of what is compared.

use serde::Serialize;

/// The machine that a bench ran on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// Model of the CPU.
    pub cpu: String,
    /// Release of the kernel.
    pub kernel: String,
    /// File system of the images, as a number of statfs(2).
    pub file_system: String,
}

impl Machine {
    /// This machine; `dir` is where the images are.
    pub(crate) fn here(dir: &std::path::Path) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = kernel.trim().split('-').next().unwrap_or("").to_owned();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            cpu,
            kernel,
            file_system: file_system(dir),
        }
    }
}

/// Whether what is in `dir` is in memory.
pub(crate) fn is_tmpfs(dir: &std::path::Path) -> bool {
    file_system(dir) == "tmpfs"
}

/// The type of the file system that holds `dir`.
fn file_system(dir: &std::path::Path) -> String {
    // Numbers of linux/magic.h.
    match rustix::fs::statfs(dir).map(|stat| stat.f_type) {
        Ok(0xef53) => "ext4".to_owned(),
        Ok(0x5846_5342) => "xfs".to_owned(),
        Ok(0x9123_683e) => "btrfs".to_owned(),
        Ok(0x0102_1994) => "tmpfs".to_owned(),
        Ok(0x6969) => "nfs".to_owned(),
        Ok(other) => format!("type {other:#x}"),
        Err(_) => "unknown".to_owned(),
    }
}

/// The first line of what a program says of its version; it may be on stderr.
pub(crate) fn version(program: &str, option: &str) -> Option<String> {
    let output = std::process::Command::new(program)
        .arg(option)
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    text.lines().next().map(|line| line.trim().to_owned())
}
