//! The task that owns the source's VM: it runs the guest, makes the first copy of its memory, and captures checkpoints.
//!
//! Here is invariant 1, the atomic cut: between the answer to `stop` (all guest I/O is drained) and `cont`, the epoch
//! is sealed over all disks, memory and devices are saved, and the line is drawn in what the guest has sent. Nothing else may
//! come between.
//!
//! Dropping the task kills the VM's QEMU, at whatever it waits: that is how a fenced source stops.

use std::time::{Duration, Instant};

use nbd_server::Epoch;
use nbd_server::control::api::{SealNumber, SealReply};
use nbd_server::control::client::ControlError;
use nbd_server::failpoint;
use qemu_glue::{
    BaseCursor, Cut, DeviceStateKind, DirtySummary, DirtyWindow, OutputGate, PageSet, SourceVm,
    VmEvent,
};
use tokio::sync::{broadcast, mpsc};

use crate::channel_io::Sender;
use crate::checkpoint;
use crate::checkpoint_channel::Kind;
use crate::failpoints;
use crate::gateway_task::Place;
use crate::link::{LinkNumber, Shipment, chain};
use crate::report::{Pause, micros};

/// How long a paused guest waits for a gateway that is just starting again. Its disks do not answer meanwhile either.
const SEAL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts to seal.
const SEAL_AGAIN: Duration = Duration::from_millis(10);
/// Bytes of RAM that one step of the first copy looks at.
const BASE_CHUNK: u64 = 4 << 20;

/// What the VM is asked to do. One after another; a capture is never interrupted by another request.
#[derive(Debug)]
pub(crate) enum Request {
    /// The first copy, into this link.
    CopyBase {
        number: LinkNumber,
        sender: Sender,
        /// The newest epoch of the group, which is in sync mode.
        newest: Epoch,
    },
    /// A checkpoint.
    Capture,
    /// A checkpoint, after which the VM stays paused until `Run`.
    CaptureLast,
    /// Put an output gate in front of these network backends.
    AttachGate { netdevs: Vec<String>, limit: u64 },
    /// Policy `on_standby_loss = "pause"`: stay paused, captures included, until `Run`.
    Hold,
    /// Undoes `Hold` and `CaptureLast`.
    Run,
    /// Press the power button.
    PowerDown,
}

/// What the VM tells.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Progress of the first copy.
    BaseProgress { done: u64, total: u64, sent: u64 },
    /// The first copy is in the link.
    BaseSent(LinkNumber),
    /// The first copy failed; the link will say that it is lost, if it was the link.
    BaseFailed { number: LinkNumber, reason: String },
    /// The guest runs on, the checkpoint is complete.
    Captured(Box<Captured>),
    /// The guest runs on, there is no checkpoint.
    CaptureFailed { reason: String },
    /// The gate is there, and passes.
    GateAttached(OutputGate),
    /// QEMU does not allow it.
    GateFailed { reason: String },
    /// The gateway says that the disks belong to someone else. The guest stays stopped.
    Fenced { reason: String },
    /// The guest powered off.
    Ended { reason: String },
    /// QEMU is gone or can't go on.
    Lost { reason: String },
}

/// A checkpoint between its capture and its sending.
#[derive(Debug)]
pub(crate) struct Captured {
    pub shipment: Shipment,
    pub pause: Pause,
    /// Before it is what the guest had sent by then; None if nobody looks at that.
    pub output: Option<Cut>,
    /// Dirty bytes of guest RAM.
    pub dirty_bytes: u64,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// How it was taken.
    pub device_state: DeviceStateKind,
    /// Bytes that the guest wrote to its disks.
    pub disk_bytes: u64,
    /// What it wrote in memory within a second, if one is over.
    pub window: Option<DirtySummary>,
}

/// Runs until the VM ends or the requests do.
pub(crate) async fn run(
    mut vm: SourceVm,
    mut gate: Option<OutputGate>,
    place: Place,
    mut requests: mpsc::Receiver<Request>,
    outcomes: mpsc::Sender<Outcome>,
) {
    let mut events = vm.subscribe();
    let mut held = false;
    // Kept from epoch to epoch: no allocation and few page faults while the guest is paused.
    let mut pages = PageSet::default();
    // From the first checkpoint on: that one has all that was written during the first copy.
    let mut window: Option<DirtyWindow> = None;
    // What the next seal is called.
    let mut next = None;
    loop {
        let request = tokio::select! {
            request = requests.recv() => match request {
                Some(request) => request,
                None => return,
            },
            event = events.recv() => {
                if let Some(outcome) = meaning(event) {
                    let _ = outcomes.send(outcome).await;
                    return;
                }
                continue;
            }
        };
        let outcome = match request {
            Request::CopyBase {
                number,
                sender,
                newest,
            } => {
                window = None;
                next = Some(SealNumber {
                    epoch: newest.next(),
                    protection: Some(number.protection()),
                });
                Some(copy_base(&mut vm, number, &sender, &outcomes).await)
            }
            Request::Capture | Request::CaptureLast => {
                held |= matches!(request, Request::CaptureLast);
                match try_capture(&mut vm, gate.as_ref(), &place, held, next, &mut pages).await {
                    Ok(mut captured) => {
                        captured.window = look(&mut window, &pages, vm.ram().len());
                        let after = captured.shipment.epoch.next();
                        next = next.map(|next| SealNumber {
                            epoch: after,
                            ..next
                        });
                        Some(Outcome::Captured(Box::new(captured)))
                    }
                    Err(error) => Some(no_checkpoint(&error, &mut events)),
                }
            }
            Request::AttachGate { netdevs, limit } => {
                Some(match vm.attach_gate(&netdevs, limit).await {
                    Ok(attached) => Outcome::GateAttached(gate.insert(attached).clone()),
                    Err(error) => Outcome::GateFailed {
                        reason: chain(&error),
                    },
                })
            }
            Request::Hold => {
                held = true;
                vm.freeze().await.err().map(lost)
            }
            Request::Run if held => {
                held = false;
                vm.resume().await.err().map(lost)
            }
            Request::Run => None,
            Request::PowerDown => vm.power_down().await.err().map(lost),
        };
        if let Some(outcome) = outcome
            && outcomes.send(outcome).await.is_err()
        {
            return;
        }
    }
}

/// Takes the pages of a checkpoint into account, while the guest runs on. Says what a window had that is over.
fn look(window: &mut Option<DirtyWindow>, pages: &PageSet, ram_bytes: u64) -> Option<DirtySummary> {
    let now = Instant::now();
    let Some(window) = window else {
        *window = Some(DirtyWindow::new(ram_bytes, now));
        return None;
    };
    window.add(&pages.ranges);
    window.end(now)
}

fn lost(error: qemu_glue::Error) -> Outcome {
    Outcome::Lost {
        reason: chain(&error),
    }
}

/// What an event of QEMU means for the protection; most mean nothing.
fn meaning(event: Result<VmEvent, broadcast::error::RecvError>) -> Option<Outcome> {
    let lost = |reason: &str| {
        Some(Outcome::Lost {
            reason: reason.to_owned(),
        })
    };
    match event {
        Ok(VmEvent::Shutdown { guest: true, .. }) => Some(Outcome::Ended {
            reason: "the guest powered off".to_owned(),
        }),
        Ok(VmEvent::Shutdown { .. }) => Some(Outcome::Ended {
            reason: "QEMU was asked to end".to_owned(),
        }),
        Ok(VmEvent::Closed) | Err(broadcast::error::RecvError::Closed) => lost("QEMU ended"),
        Ok(VmEvent::BlockIoError {
            node,
            operation,
            reason,
            ..
        }) => {
            tracing::error!(node, operation, reason, "a disk of the guest failed");
            None
        }
        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => None,
    }
}

/// Sends all of the guest's RAM that is not zero, while the guest runs. What the guest writes meanwhile is in the
/// first checkpoint again.
async fn copy_base(
    vm: &mut SourceVm,
    number: LinkNumber,
    sender: &Sender,
    outcomes: &mpsc::Sender<Outcome>,
) -> Outcome {
    match try_copy_base(vm, sender, outcomes).await {
        Ok(()) => Outcome::BaseSent(number),
        Err(reason) => Outcome::BaseFailed { number, reason },
    }
}

async fn try_copy_base(
    vm: &mut SourceVm,
    sender: &Sender,
    outcomes: &mpsc::Sender<Outcome>,
) -> Result<(), String> {
    vm.start_tracking().await.map_err(|e| chain(&e))?;
    let total = vm.ram().len();
    let mut cursor = BaseCursor::new(BASE_CHUNK);
    let mut pages = PageSet::default();
    let mut sent = 0;
    loop {
        failpoint::hit(failpoints::MID_BASE);
        let more = vm.copy_base(&mut cursor, &mut pages).await;
        let more = more.map_err(|e| chain(&e))?;
        for payload in checkpoint::page_payloads(&checkpoint::ranges(&pages), &pages.data) {
            sent += payload.len() as u64;
            sender
                .send_new(Kind::BasePages, Epoch(0), payload)
                .await
                .map_err(|e| chain(&e))?;
        }
        let progress = Outcome::BaseProgress {
            done: cursor.position(),
            total,
            sent,
        };
        let _ = outcomes.send(progress).await;
        if !more {
            return Ok(());
        }
    }
}

/// What a failed capture means. A QEMU that is gone is the loss of the VM, not of a checkpoint: the standby holds the memory
/// of the last one, and must not be let go.
fn no_checkpoint(error: &CaptureError, events: &mut broadcast::Receiver<VmEvent>) -> Outcome {
    let reason = chain(error);
    match error {
        CaptureError::Seal(error) if error.is_fenced() => Outcome::Fenced {
            reason: error.to_string(),
        },
        CaptureError::Vm(qemu_glue::Error::Exited { .. } | qemu_glue::Error::QmpClosed) => {
            // A guest that powered off has said so before its QEMU ended.
            let mut said = std::iter::from_fn(|| match events.try_recv() {
                Err(broadcast::error::TryRecvError::Lagged(_)) => Some(None),
                event => event.ok().map(|event| meaning(Ok(event))),
            });
            let said = said.find_map(|outcome| outcome);
            said.unwrap_or(Outcome::Lost { reason })
        }
        CaptureError::Seal(_) | CaptureError::Vm(_) => Outcome::CaptureFailed { reason },
    }
}

#[derive(Debug, thiserror::Error)]
enum CaptureError {
    #[error("the epoch could not be sealed")]
    Seal(#[source] ControlError),
    #[error("the VM could not be captured")]
    Vm(#[source] qemu_glue::Error),
}

/// One pause: stop, then seal and save side by side, then let the guest run on (unless it is held).
async fn try_capture(
    vm: &mut SourceVm,
    gate: Option<&OutputGate>,
    place: &Place,
    held: bool,
    next: Option<SealNumber>,
    pages: &mut PageSet,
) -> Result<Captured, CaptureError> {
    failpoint::hit(failpoints::BEFORE_STOP);
    let began = Instant::now();
    let mut stopped = vm.stop().await.map_err(CaptureError::Vm)?;
    failpoint::hit(failpoints::AFTER_STOP);
    let output = gate.map(OutputGate::cut);
    let ((sealed, seal), saved) = tokio::join!(seal(place, next), stopped.save(pages));
    let sealed = match sealed {
        // The guest stays stopped: what is not ours any more does not run on.
        Err(error) if error.is_fenced() => return Err(CaptureError::Seal(error)),
        sealed => sealed,
    };
    failpoint::hit(failpoints::AFTER_CAPTURE);
    let (parts, total) = if held {
        (stopped.parts(), micros(began.elapsed()))
    } else {
        let parts = stopped.resume().await.map_err(CaptureError::Vm)?;
        (parts, parts.total)
    };
    failpoint::hit(failpoints::AFTER_RESUME);
    let sealed = sealed.map_err(CaptureError::Seal)?;
    let saved = saved.map_err(CaptureError::Vm)?;
    let kind = saved.kind();
    let device_state = saved.into_vec();
    let device_bytes = device_state.len() as u64;
    let frames = checkpoint::frames(
        place.stamp(),
        sealed.epoch,
        &checkpoint::ranges(pages),
        &pages.data,
        device_state.into(),
    );
    Ok(Captured {
        shipment: Shipment {
            epoch: sealed.epoch,
            frames,
        },
        dirty_bytes: pages.data.len() as u64,
        device_bytes,
        output,
        device_state: kind,
        pause: Pause {
            stop: parts.stop,
            seal: micros(seal),
            scan: parts.scan,
            copy: parts.copy,
            device_state: parts.device_state,
            resume: parts.resume,
            total,
        },
        disk_bytes: sealed.bytes,
        window: None,
    })
}

/// Seals the epoch, as `next` if there was a first copy. Then a gateway that does not answer is asked again: it may be starting, with all
/// that it held, and the guest is paused, so that the cut is the same.
async fn seal(
    place: &Place,
    next: Option<SealNumber>,
) -> (Result<SealReply, ControlError>, Duration) {
    let began = Instant::now();
    let (client, group, generation) = (&place.client, &place.group, place.generation);
    let sealed = loop {
        let Some(number) = next else {
            break client.seal(group, generation).await;
        };
        match client.seal_as(group, generation, number).await {
            Err(ControlError::Unreachable { .. }) if began.elapsed() < SEAL_PATIENCE => {
                tokio::time::sleep(SEAL_AGAIN).await;
            }
            sealed => break sealed,
        }
    };
    failpoint::hit(failpoints::AFTER_SEAL);
    (sealed, began.elapsed())
}
