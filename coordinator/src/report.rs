//! What source and standby tell the world: one report per event, and the status that follows from them.
//!
//! The loops only emit reports. Logs, the `--json` stream, the status socket and the demo's timeline are all made from
//! them, so that they can't disagree. Fields are added, not renamed: scripts read them.

mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nbd_server::{Epoch, Generation};
use qemu_glue::{DeviceStateKind, DirtySummary};
use serde::{Deserialize, Serialize};

pub use status::{State, Status};

/// The pause of one checkpoint, part by part, in microseconds. Scan, copy, seal and device state overlap, so the parts
/// add up to more than `total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// QMP `stop` until its answer: the guest's I/O is drained.
    pub stop: u64,
    /// Sealing the epoch at the gateway.
    pub seal: u64,
    /// Finding the dirty pages.
    pub scan: u64,
    /// Copying them out.
    pub copy: u64,
    /// Taking the device state.
    pub device_state: u64,
    /// QMP `cont` until its answer.
    pub resume: u64,
    /// From `stop` being sent to the guest running again.
    pub total: u64,
}

/// Something that happened at a source or a standby.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    /// Source: the VM runs, in sync mode.
    VmStarted {
        /// Its name.
        vm: String,
        /// Process id of its QEMU.
        pid: u32,
        /// Version of QEMU.
        qemu: String,
        /// Which dirty tracker runs: `pagemap` or `hash`.
        dirty_tracker: String,
        /// How device state is taken: `save` or `migrate`. Single checkpoints may differ.
        device_state: DeviceStateKind,
        /// Generation of the group.
        generation: Generation,
        /// Size of the guest's RAM in bytes.
        ram_bytes: u64,
        /// Where somebody who watches its QEMU may connect and speak QMP.
        #[serde(default)]
        watch_socket: PathBuf,
    },
    /// Source: no standby answers; the VM runs on unprotected.
    SeekingStandby {
        /// What the last attempt said.
        reason: String,
    },
    /// Source: a standby is ready for the first copy.
    StandbyJoined {
        /// Its id.
        standby: String,
    },
    /// Source: progress of the first copy.
    FirstCopy {
        /// Bytes of RAM looked at.
        done: u64,
        /// Bytes of RAM in all.
        total: u64,
        /// Bytes sent (zero pages are not).
        sent: u64,
    },
    /// Source: the first checkpoint is committed; from now on the VM survives the loss of this host.
    Protected {
        /// The standby that holds the memory.
        standby: String,
        /// The epoch.
        epoch: Epoch,
    },
    /// Source: a checkpoint is captured and the guest runs on.
    Captured {
        /// Its epoch.
        epoch: Epoch,
        /// The pause.
        pause_us: Pause,
        /// Dirty bytes of guest RAM.
        dirty_bytes: u64,
        /// Bytes of device state.
        device_bytes: u64,
        /// How it was taken.
        device_state: DeviceStateKind,
        /// Bytes the guest wrote to its disks in this epoch.
        disk_bytes: u64,
        /// Bytes of all its frames, before they are packed.
        wire_bytes: u64,
        /// Packets that the guest has sent by then, since the output gate is there. Those that are new in this epoch wait for its
        /// commit record.
        #[serde(default)]
        output_packets: u64,
        /// Bytes of packets that wait then.
        #[serde(default)]
        output_bytes: u64,
    },
    /// Source: what the guest did within about a second, as its checkpoints show it.
    Activity(Activity),
    /// Source: a checkpoint is on its way, packed.
    Packed {
        /// Its epoch.
        epoch: Epoch,
        /// Bytes of all its frames on the wire.
        wire_bytes: u64,
        /// CPU time of packing them, beside the running guest, in microseconds.
        pack_us: u64,
    },
    /// Source: the output gate was full; packets of the guest were dropped.
    OutputDropped {
        /// How many in all.
        packets: u64,
    },
    /// Source: commit record durable.
    Committed {
        /// Its epoch.
        epoch: Epoch,
        /// From capture to COMMIT 1, in microseconds.
        commit1_us: u64,
        /// From COMMIT 1 to the durable record, in microseconds.
        commit2_us: u64,
    },
    /// Source: the record could not be written now.
    CommitFailed {
        /// Its epoch.
        epoch: Epoch,
        /// The gateway's reason.
        reason: String,
    },
    /// Source: the standby is lost; the gateway is being drained to sync mode.
    StandbyLost {
        /// Why it is taken for lost.
        reason: String,
    },
    /// Source: the VM runs in sync mode and is not protected.
    Unprotected {
        /// Last committed epoch.
        epoch: Epoch,
    },
    /// Source: the gateway does not answer; the guest's disk I/O waits.
    GatewayLost {
        /// What the last attempt said.
        reason: String,
    },
    /// Source: the gateway is back and the generation is still ours.
    GatewayBack,
    /// Source: another generation owns the disks; the VM here is stopped.
    Fenced {
        /// Why.
        reason: String,
    },
    /// The VM does not run here any more.
    VmEnded {
        /// Why.
        reason: String,
        /// The guest powered off or was stopped by the operator.
        planned: bool,
    },
    /// Standby: ready for a source.
    Listening {
        /// Its id.
        standby: String,
        /// Address of the checkpoint channel.
        address: String,
    },
    /// Standby: a source was turned away.
    SourceRefused {
        /// Why.
        reason: String,
    },
    /// Standby: a source sends its VM.
    SourceJoined {
        /// The source's id.
        source: String,
        /// Its generation.
        generation: Generation,
        /// Process id of the standby QEMU.
        pid: u32,
        /// Where somebody who watches it may connect and speak QMP.
        #[serde(default)]
        watch_socket: PathBuf,
    },
    /// Standby: checkpoint held (COMMIT 1 acknowledged).
    Held {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Standby: merged after COMMIT 3.
    Merged {
        /// The epoch.
        epoch: Epoch,
    },
    /// Standby: the source is taken for lost.
    SourceLost {
        /// How that was found.
        reason: String,
    },
    /// Standby: the gateway does not answer the takeover; it is tried again.
    TakeoverWaits {
        /// What the last attempt said.
        reason: String,
    },
    /// Standby: the generation is raised, the disks are ours.
    TakenOver {
        /// The new generation.
        generation: Generation,
        /// E, the last committed epoch.
        epoch: Epoch,
    },
    /// Standby: the guest goes on.
    Resumed {
        /// E.
        epoch: Epoch,
        /// Asking the gateway, in microseconds.
        takeover_us: u64,
        /// Merging what was verified and not merged, in microseconds.
        merge_us: u64,
        /// Loading the device state and letting the guest run, in microseconds.
        resume_us: u64,
    },
    /// Standby: memory and devices of an epoch are in the memory history, and the gateway keeps its disks.
    MemoryKept {
        /// The epoch.
        epoch: Epoch,
        /// Bytes that were stored for it.
        bytes: u64,
        /// How long that took, beside all else, in microseconds.
        took_us: u64,
    },
    /// Standby: it was time to keep an epoch in the memory history, and it could not be. Protection goes on.
    MemorySkipped {
        /// The epoch.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// Standby: what it held is dropped.
    Discarded {
        /// Why.
        reason: String,
    },
}

/// What the guest did within about a second. A protected VM has one for each second; of a VM whose checkpoints are further apart, one for
/// each of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// Microseconds since 1970 at the end of that time.
    pub t_us: u64,
    /// Which pages it wrote.
    pub dirty: DirtySummary,
    /// What it has sent through the output gate since that is there; None if there is no gate.
    pub output: Option<OutputCounts>,
}

/// What went through the output gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputCounts {
    /// Packets that the guest has sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that wait now.
    pub held_bytes: u64,
    /// Packets dropped because the gate was full.
    pub dropped: u64,
}

/// A report with the time at which it was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stamped {
    /// Microseconds since 1970, by the clock of the host.
    pub t_us: u64,
    /// The report.
    #[serde(flatten)]
    pub report: Report,
}

/// Where reports go. Must not block: it is called beside the pause.
pub type Reporter = Arc<dyn Fn(Stamped) + Send + Sync>;

/// Microseconds since 1970.
pub fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, micros)
}

/// A duration in microseconds, as all reports have it.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Emits a report now.
pub(crate) fn emit(reporter: &Reporter, report: Report) {
    reporter(Stamped {
        t_us: now_us(),
        report,
    });
}
