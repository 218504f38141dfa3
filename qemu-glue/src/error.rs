//! What can go wrong between us and QEMU. Messages say what to do where the user can do something.

use std::io;
use std::path::PathBuf;

use crate::dirty_pages::TrackerKind;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of driving QEMU.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The VM description asks for something that can't be protected, or contradicts itself.
    #[error("VM \"{vm}\": {problem}")]
    Description {
        /// Name of the VM.
        vm: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A file or socket could not be prepared.
    #[error("can't {action} {}", path.display())]
    File {
        /// What was tried, as a verb phrase ("create the RAM file").
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The RAM directory can't hold the guest's memory.
    #[error(
        "{} has {free_mib} MiB free but the guest's memory needs {need_mib} MiB: free some space, enlarge it \
         (mount -o remount,size=...) or set ram_dir to a larger tmpfs or hugetlbfs",
        dir.display()
    )]
    RamSpace {
        /// The RAM directory.
        dir: PathBuf,
        /// Needed, in MiB.
        need_mib: u64,
        /// Free, in MiB.
        free_mib: u64,
    },
    /// An access beyond the guest's memory.
    #[error("page range {offset}+{len} lies outside the guest's memory of {ram} bytes")]
    OutOfRam {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Size of the guest's memory in bytes.
        ram: u64,
    },
    /// The QEMU program could not be started at all.
    #[error("can't start {}: is QEMU installed and is the `qemu` key right?", program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// QEMU ended although it should be there.
    #[error("QEMU of VM \"{vm}\" ended ({status}){stderr}")]
    Exited {
        /// Name of the VM.
        vm: String,
        /// Exit status or signal in words.
        status: String,
        /// Last lines of its stderr, each on a line of its own, or empty.
        stderr: String,
    },
    /// QEMU refused a QMP command.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        /// The QMP command.
        command: &'static str,
        /// QEMU's own words.
        description: String,
    },
    /// The QMP connection is gone.
    #[error("the QMP connection to QEMU is closed")]
    QmpClosed,
    /// QMP I/O failed or QEMU said something that isn't QMP.
    #[error("QMP: {problem}")]
    Qmp {
        /// What is wrong.
        problem: String,
    },
    /// QEMU didn't do in time what it always does quickly.
    #[error("QEMU did not {what} within {seconds} s")]
    Timeout {
        /// What was awaited.
        what: &'static str,
        /// How long it was awaited, in seconds.
        seconds: u64,
    },
    /// A dirty-page tracker can't be used or failed.
    #[error("the {kind} dirty-page tracker: {problem}")]
    Tracker {
        /// Which one.
        kind: TrackerKind,
        /// What is wrong.
        problem: String,
        /// The system's reason, if there is one.
        #[source]
        source: Option<io::Error>,
    },
    /// The output gate can't be put in front of the guest's network.
    #[error("the output gate: {problem}")]
    Gate {
        /// What is wrong.
        problem: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Pages were asked for before [`crate::SourceVm::start_tracking`].
    #[error("dirty pages are not tracked yet: call start_tracking before the base copy")]
    NotTracking,
    /// Saving or loading the device state failed.
    #[error("device state: {problem}")]
    DeviceState {
        /// What is wrong.
        problem: String,
    },
    /// The guest can't run on: it shut down, panicked or its QEMU has an internal error.
    #[error("the guest of VM \"{vm}\" is not running any more (state {state})")]
    GuestEnded {
        /// Name of the VM.
        vm: String,
        /// QEMU's run state.
        state: String,
    },
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Error::File {
            action,
            path,
            source,
        }
    }

    pub(crate) fn tracker(
        kind: TrackerKind,
        problem: &'static str,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Tracker {
            kind,
            problem: problem.into(),
            source: Some(source),
        }
    }
}
