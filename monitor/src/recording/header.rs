//! What is known of a recorded run: plain values with bounds.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::bounds::{INTERVAL, MAX_MARKS, MAX_NAME_BYTES, MAX_NOTE_BYTES};
use super::error::RecordingError;

/// All that is known of a run. Times are milliseconds since its start, as those of the samples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The VM.
    pub vm: VmSize,
    /// The host and its software.
    pub host: Host,
    /// What the guest was doing, as a short name such as `compile`. None: nobody has said.
    pub load: Option<String>,
    /// What was made to fail. None: nothing, as far as is known.
    pub fault: Option<Fault>,
    /// Marks in the run, in the order of time: `boot`, `load`, ...
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Seed of what was random in the run.
    pub seed: Option<u64>,
    /// Distance of two samples in milliseconds, as it was asked for.
    pub interval_ms: u32,
    /// Milliseconds since 1970 at the start.
    pub started_ms: u64,
    /// Whatever else is of use to somebody who selects recordings.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// For people.
    #[serde(default)]
    pub note: String,
}

/// How large the VM is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSize {
    /// Virtual processors.
    pub vcpus: u32,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Disks.
    pub disks: u32,
}

/// What it ran on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// QEMU's version, such as `7.2.22`.
    pub qemu: String,
    /// `tcg` or `kvm`.
    pub accelerator: String,
    /// Cores of the host.
    pub cores: u32,
}

/// Something that was made to fail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What, as a short name such as `kernel_panic`.
    pub kind: String,
    /// When it began.
    pub at_ms: u64,
    /// When it was over. None: it lasted to the end.
    #[serde(default)]
    pub until_ms: Option<u64>,
}

/// A mark in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// What begins.
    pub name: String,
    /// When.
    pub at_ms: u64,
}

impl Fault {
    /// Whether it was there at this time.
    pub fn is_at(&self, at_ms: u64) -> bool {
        self.at_ms <= at_ms && self.until_ms.is_none_or(|until| at_ms < until)
    }
}

impl Header {
    /// Checks it against the bounds.
    pub(super) fn check(&self) -> Result<(), RecordingError> {
        let beyond = |what: &str| Err(RecordingError::Header(what.to_owned()));
        if !INTERVAL.contains(&Duration::from_millis(self.interval_ms.into())) {
            return beyond("the interval is not from 100 ms to 10 s");
        }
        if self.phases.len() > MAX_MARKS || self.tags.len() > MAX_MARKS {
            return beyond("more than 256 phases or tags");
        }
        if self.note.len() > MAX_NOTE_BYTES {
            return beyond("a note of more than 8 KiB");
        }
        let names = [&self.host.qemu, &self.host.accelerator].into_iter();
        let names = names.chain(&self.load);
        let names = names.chain(self.fault.as_ref().map(|fault| &fault.kind));
        let names = names.chain(self.phases.iter().map(|phase| &phase.name));
        for name in names.chain(self.tags.iter().flat_map(|(key, value)| [key, value])) {
            if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control)
            {
                return beyond(
                    "a name that is empty, has a control character or more than 128 bytes",
                );
            }
        }
        if self
            .phases
            .windows(2)
            .any(|two| two[0].at_ms > two[1].at_ms)
        {
            return beyond("phases that are not in the order of time");
        }
        match &self.fault {
            Some(fault) if fault.until_ms.is_some_and(|until| until < fault.at_ms) => {
                beyond("a fault that ends before it begins")
            }
            _ => Ok(()),
        }
    }
}
