//! What the events of a site have told so far.

use coordinator::report::{Report, Stamped};
use qemu_glue::DeviceStateKind;

/// What is in the events so far, kept by [`Site`](super::Site) while it waits.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    /// Process id of the source's QEMU.
    pub source_qemu: Option<i32>,
    /// Version of QEMU.
    pub qemu: String,
    /// The dirty tracker that runs.
    pub dirty_tracker: String,
    /// How device state is taken.
    pub device_state: Option<DeviceStateKind>,
    /// Bytes of device state per checkpoint.
    pub device_bytes: Vec<u64>,
    /// Pauses in microseconds, since [`Site::measure_from_now`](super::Site::measure_from_now).
    pub pauses: Vec<coordinator::report::Pause>,
    /// Dirty bytes of guest memory per checkpoint.
    pub dirty_bytes: Vec<u64>,
    /// Bytes that the guest wrote to its disks per checkpoint.
    pub disk_bytes: Vec<u64>,
    /// Bytes on the wire per checkpoint.
    pub wire_bytes: Vec<u64>,
    /// Microseconds from capture to COMMIT 1.
    pub commit1: Vec<u64>,
    /// Microseconds from COMMIT 1 to the durable record.
    pub commit2: Vec<u64>,
    /// Last epoch that the source reported as committed.
    pub committed: u64,
    /// Epochs committed since the VM is protected.
    pub epochs: u64,
    /// What the standby came to after it lost the source: it resumed, or discarded what it held.
    pub conclusion: Option<Stamped>,
    /// How the standby noticed.
    pub noticed_by: String,
}

impl Seen {
    /// Forgets what is said of single checkpoints.
    pub(super) fn measure_from_now(&mut self) {
        self.pauses.clear();
        self.dirty_bytes.clear();
        self.disk_bytes.clear();
        self.wire_bytes.clear();
        self.device_bytes.clear();
        self.commit1.clear();
        self.commit2.clear();
    }

    /// Takes one event into account.
    pub(super) fn note(&mut self, event: &Stamped) {
        match &event.report {
            Report::VmStarted {
                pid,
                qemu,
                dirty_tracker,
                device_state,
                ..
            } => {
                self.source_qemu = i32::try_from(*pid).ok();
                self.qemu.clone_from(qemu);
                self.dirty_tracker.clone_from(dirty_tracker);
                self.device_state = Some(*device_state);
            }
            Report::Captured {
                pause_us,
                dirty_bytes,
                device_bytes,
                device_state,
                disk_bytes,
                ..
            } => {
                self.dirty_bytes.push(*dirty_bytes);
                self.disk_bytes.push(*disk_bytes);
                self.device_state = Some(*device_state);
                self.device_bytes.push(*device_bytes);
                self.pauses.push(*pause_us);
            }
            Report::Packed { wire_bytes, .. } => self.wire_bytes.push(*wire_bytes),
            Report::Committed {
                epoch,
                commit1_us,
                commit2_us,
            } => {
                self.committed = epoch.0;
                self.epochs += 1;
                self.commit1.push(*commit1_us);
                self.commit2.push(*commit2_us);
            }
            Report::SourceLost { reason } => self.noticed_by.clone_from(reason),
            Report::Resumed { .. } | Report::Discarded { .. } => {
                self.conclusion = Some(event.clone());
            }
            _ => {}
        }
    }
}
