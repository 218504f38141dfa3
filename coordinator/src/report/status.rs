//! The present state of a source or a standby, folded from its reports.

use std::path::PathBuf;

use nbd_server::{Epoch, Generation};
use qemu_glue::DeviceStateKind;
use serde::{Deserialize, Serialize};

use super::{Activity, Pause, Report};

/// How the message begins that a point was not kept; it goes with the next that is.
const NOT_KEPT: &str = "memory is not kept";

/// Whether and how a VM is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Not started yet, or waiting for a source.
    Idle,
    /// Runs, and a failure of this host ends it.
    Unprotected,
    /// The first copy is under way: not protected yet.
    Filling,
    /// A failure of this host is survived.
    Protected,
    /// A standby that receives.
    Receiving,
    /// A standby that takes over.
    TakingOver,
    /// Does not run here any more.
    Ended,
}

/// The present state of a source or a standby, folded from its reports.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `source` or `standby`.
    pub role: String,
    /// The VM.
    pub vm: String,
    /// What it is up to.
    pub state: State,
    /// Process id of its QEMU.
    pub qemu_pid: Option<u32>,
    /// Version of QEMU.
    pub qemu: Option<String>,
    /// The dirty tracker.
    pub dirty_tracker: Option<String>,
    /// How the device state of the last checkpoint was taken, or will be.
    pub device_state: Option<DeviceStateKind>,
    /// Generation of the group.
    pub generation: Option<Generation>,
    /// The other side.
    pub peer: Option<String>,
    /// Last committed epoch that is known here.
    pub committed: Option<Epoch>,
    /// Epochs captured or verified, and not committed or merged.
    pub in_flight: u64,
    /// The last pause.
    pub pause_us: Option<Pause>,
    /// Bytes of the last checkpoint on the wire.
    pub wire_bytes: Option<u64>,
    /// Bytes of packets that waited for a commit record at the last checkpoint.
    #[serde(default)]
    pub output_bytes: u64,
    /// Where somebody who watches its QEMU may connect and speak QMP.
    #[serde(default)]
    pub watch_socket: Option<PathBuf>,
    /// What the guest did last; only while its checkpoints are taken.
    #[serde(default)]
    pub activity: Option<Activity>,
    /// The last thing that an operator should know.
    pub message: Option<String>,
}

impl Status {
    /// The status before the first report.
    pub fn new(role: &str, vm: &str) -> Self {
        Self {
            role: role.to_owned(),
            vm: vm.to_owned(),
            state: State::Idle,
            qemu_pid: None,
            qemu: None,
            dirty_tracker: None,
            device_state: None,
            generation: None,
            peer: None,
            committed: None,
            in_flight: 0,
            pause_us: None,
            wire_bytes: None,
            output_bytes: 0,
            watch_socket: None,
            activity: None,
            message: None,
        }
    }

    /// Takes one report into account.
    pub fn apply(&mut self, report: &Report) {
        match report {
            Report::VmStarted {
                pid,
                qemu,
                dirty_tracker,
                device_state,
                generation,
                watch_socket,
                ..
            } => {
                self.watch_socket = Some(watch_socket.clone());
                self.state = State::Unprotected;
                self.qemu_pid = Some(*pid);
                self.qemu = Some(qemu.clone());
                self.dirty_tracker = Some(dirty_tracker.clone());
                self.device_state = Some(*device_state);
                self.generation = Some(*generation);
            }
            Report::SeekingStandby { reason } => self.message = Some(reason.clone()),
            Report::StandbyJoined { standby } => {
                self.peer = Some(standby.clone());
                self.state = State::Filling;
            }
            Report::FirstCopy { .. } => {}
            Report::Activity(activity) => self.activity = Some(*activity),
            Report::OutputDropped { packets } => {
                self.message = Some(format!(
                    "the output gate was full: {packets} packets were dropped"
                ));
            }
            Report::GatewayBack => self.message = None,
            Report::Protected { epoch, .. } => {
                self.state = State::Protected;
                self.committed = Some(*epoch);
                self.message = None;
            }
            Report::Packed { wire_bytes, .. } => self.wire_bytes = Some(*wire_bytes),
            Report::Captured {
                pause_us,
                output_bytes,
                device_state,
                ..
            } => {
                self.output_bytes = *output_bytes;
                self.in_flight += 1;
                self.device_state = Some(*device_state);
                self.pause_us = Some(*pause_us);
            }
            Report::Committed { epoch, .. } => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.committed = Some(*epoch);
            }
            Report::CommitFailed { reason, .. }
            | Report::GatewayLost { reason }
            | Report::TakeoverWaits { reason } => {
                self.message = Some(reason.clone());
            }
            Report::StandbyLost { reason } => {
                self.state = State::Unprotected;
                self.peer = None;
                self.activity = None;
                self.in_flight = 0;
                self.message = Some(reason.clone());
            }
            Report::Unprotected { epoch } => {
                self.state = State::Unprotected;
                self.committed = Some(*epoch);
            }
            Report::Fenced { reason } | Report::VmEnded { reason, .. } => {
                self.state = State::Ended;
                self.qemu_pid = None;
                self.watch_socket = None;
                self.activity = None;
                self.message = Some(reason.clone());
            }
            Report::Listening { .. } => self.state = State::Idle,
            Report::SourceRefused { reason } => self.message = Some(reason.clone()),
            Report::MemoryKept { .. } => {
                self.message.take_if(|said| said.starts_with(NOT_KEPT));
            }
            Report::MemorySkipped { epoch, reason } => {
                self.message = Some(format!("{NOT_KEPT}, epoch {epoch}: {reason}"));
            }
            Report::SourceJoined {
                source,
                generation,
                pid,
                watch_socket,
            } => {
                self.watch_socket = Some(watch_socket.clone());
                self.state = State::Receiving;
                self.peer = Some(source.clone());
                self.generation = Some(*generation);
                self.qemu_pid = Some(*pid);
            }
            Report::Held { .. } => self.in_flight += 1,
            Report::Merged { epoch } => {
                self.in_flight = self.in_flight.saturating_sub(1);
                self.committed = Some(*epoch);
            }
            Report::SourceLost { reason } => {
                self.state = State::TakingOver;
                self.peer = None;
                self.message = Some(reason.clone());
            }
            Report::TakenOver { generation, epoch } => {
                self.generation = Some(*generation);
                self.committed = Some(*epoch);
            }
            Report::Resumed { .. } => {
                self.role = "source".to_owned();
                self.state = State::Unprotected;
                self.in_flight = 0;
            }
            Report::Discarded { reason } => {
                self.state = State::Idle;
                self.qemu_pid = None;
                self.watch_socket = None;
                self.peer = None;
                self.in_flight = 0;
                self.message = Some(reason.clone());
            }
        }
    }
}
