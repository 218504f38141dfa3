//! What one run is: plain values, made by [`crate::plan`] and written beside the recording. Starts nothing.

use serde::{Deserialize, Serialize};

/// Size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Virtual processors.
    pub cpus: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
}

/// The sizes of the plan.
pub const SIZES: [Size; 6] = [
    Size::new(1, 256),
    Size::new(2, 512),
    Size::new(4, 1024),
    Size::new(1, 512),
    Size::new(2, 1024),
    Size::new(4, 512),
];

impl Size {
    const fn new(cpus: u32, memory_mib: u64) -> Self {
        Self { cpus, memory_mib }
    }
}

/// What clients outside of the VM do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do")]
pub enum Client {
    /// Gets `path` on so many connections, so many times a second in all; an answer that does not come is given up after a while.
    Get {
        /// Port of the guest.
        port: u16,
        /// What is got.
        path: String,
        /// Requests a second.
        rate: f64,
        /// Requests at the same time, at most.
        connections: usize,
    },
    /// Sends bytes to a port of the guest, so many KiB a second.
    Send {
        /// Port of the guest.
        port: u16,
        /// KiB a second.
        rate: u64,
    },
    /// Resets the VM after so many seconds, again and again, as an administrator would.
    Reset {
        /// Seconds from one to the next.
        every: u64,
    },
}

/// How a fault is put into the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Way {
    /// A line for the guest's shell.
    Guest {
        /// The line.
        line: String,
    },
    /// The host lets no request of the data disk come to an end.
    DiskHangs,
    /// The host lets every request of the data disk fail.
    DiskFails,
}

/// A healthy change of the load: work begins, ends, or is followed by other work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Seconds from the begin of the load.
    pub at_s: u64,
    /// Lines for the guest's shell.
    pub lines: Vec<String>,
    /// What goes on outside from then on, beside what there was.
    pub clients: Vec<Client>,
}

/// A fault of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultSpec {
    /// Its kind.
    pub kind: String,
    /// How it is made.
    pub way: Way,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// Name of the run and of its files.
    pub id: String,
    /// Kind of the load.
    pub load: String,
    /// Size of the VM.
    pub size: Size,
    /// Whether the guest swaps.
    pub swap: bool,
    /// Milliseconds between two checkpoints, if the VM is protected.
    #[serde(default)]
    pub protected_ms: Option<u64>,
    /// Lines for the guest's shell that begin the load.
    pub lines: Vec<String>,
    /// What goes on outside.
    pub clients: Vec<Client>,
    /// Loads that are in it beside that of its kind, or follow it.
    #[serde(default)]
    pub also: Vec<String>,
    /// What the load changes to, in the order of time.
    #[serde(default)]
    pub changes: Vec<Change>,
    /// The fault, if there is one.
    pub fault: Option<FaultSpec>,
    /// Seconds from the begin of the load to the fault, or to the end.
    pub normal_s: u64,
    /// Seconds from the fault to the end.
    pub faulty_s: u64,
    /// Seed of what is random in the run.
    pub seed: u64,
}

impl Spec {
    /// Seconds of a running VM that are recorded.
    pub fn seconds(&self) -> u64 {
        self.normal_s
            + if self.fault.is_some() {
                self.faulty_s
            } else {
                0
            }
    }
}
