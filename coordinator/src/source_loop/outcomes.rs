//! What the tasks of a source report, as events of the protocol.

use std::time::{Duration, Instant};

use qemu_glue::{Cut, DirtySummary, OutputGate};

use super::{Gate, SourceLoop, Times};
use crate::checkpoint_channel::Frame;
use crate::commit::{Event, Phase};
use crate::ending::Ending;
use crate::link::LinkEvent;
use crate::report::{Activity, OutputCounts, Report, emit, micros, now_us};
use crate::{gateway_task, vm_task};

impl SourceLoop {
    pub(super) async fn link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Seeking { reason } => {
                tracing::warn!(reason, "no standby yet: the VM runs unprotected");
                emit(&self.reporter, Report::SeekingStandby { reason });
            }
            LinkEvent::Joined(link) => {
                let standby = link.standby.clone();
                emit(
                    &self.reporter,
                    Report::StandbyJoined {
                        standby: standby.clone(),
                    },
                );
                self.link = Some(link);
                self.step(Event::StandbyJoined { standby }).await;
            }
            LinkEvent::Commit1Acked { epoch } => {
                if let Some(times) = self.times.get_mut(&epoch) {
                    times.acked = Some(Instant::now());
                }
                self.step(Event::Commit1Acked { epoch }).await;
            }
            LinkEvent::Packed(packed) => emit(
                &self.reporter,
                Report::Packed {
                    epoch: packed.epoch,
                    wire_bytes: packed.wire_bytes,
                    pack_us: micros(packed.took),
                },
            ),
            LinkEvent::Lost { reason } => self.standby_lost(reason).await,
        }
    }

    async fn standby_lost(&mut self, reason: String) {
        tracing::warn!(reason, "the standby is lost: the VM is not protected");
        emit(&self.reporter, Report::StandbyLost { reason });
        self.step(Event::StandbyLost).await;
    }

    fn output_held(&self) -> u64 {
        match &self.gate {
            Gate::There(gate) => gate.counts().held_bytes,
            Gate::Later { .. } => 0,
        }
    }

    fn tell_activity(&self, dirty: DirtySummary) {
        let output = match &self.gate {
            Gate::There(gate) => {
                let counts = gate.counts();
                Some(OutputCounts {
                    packets: counts.packets,
                    bytes: counts.bytes,
                    held_bytes: counts.held_bytes,
                    dropped: counts.dropped,
                })
            }
            Gate::Later { .. } => None,
        };
        let t_us = now_us();
        let activity = Activity { t_us, dirty, output };
        emit(&self.reporter, Report::Activity(activity));
    }

    fn gate_attached(&mut self, gate: OutputGate) {
        self.gate_state = gate.subscribe();
        self.gate = Gate::There(gate);
        self.seek_standby();
    }

    /// Packets wait or have left, or the gate is broken.
    pub(super) async fn gate_changed(&mut self) {
        let state = self.gate_state.borrow_and_update().clone();
        self.beat.backlog(state.backlog);
        if state.dropped > self.dropped {
            self.dropped = state.dropped;
            tracing::warn!(
                dropped = state.dropped,
                "the output gate is full: packets of the guest are dropped"
            );
            emit(
                &self.reporter,
                Report::OutputDropped {
                    packets: state.dropped,
                },
            );
        }
        if let Some(problem) = state.broken {
            self.vm_gone(&format!("the guest's network is lost: {problem}"))
                .await;
        }
    }

    pub(super) async fn vm_outcome(&mut self, outcome: vm_task::Outcome) {
        use vm_task::Outcome;
        match outcome {
            Outcome::BaseProgress { done, total, sent } => {
                emit(&self.reporter, Report::FirstCopy { done, total, sent });
            }
            Outcome::BaseSent(number) if number == self.number => self.step(Event::BaseSent).await,
            Outcome::BaseFailed { number, reason } if number == self.number => {
                self.standby_lost(reason).await;
            }
            Outcome::BaseSent(_) | Outcome::BaseFailed { .. } => {}
            Outcome::Captured(captured) => self.captured(*captured).await,
            Outcome::CaptureFailed { reason } => {
                tracing::warn!(reason, "a checkpoint failed");
                if self.machine.protected() {
                    emit(&self.reporter, Report::StandbyLost { reason });
                }
                self.step(Event::CaptureFailed).await;
            }
            Outcome::GateAttached(gate) => self.gate_attached(gate),
            Outcome::GateFailed { reason } => {
                tracing::error!(
                    reason,
                    "what the guest sends can't be held: the VM stays unprotected"
                );
                emit(&self.reporter, Report::SeekingStandby { reason });
            }
            Outcome::Fenced { reason } => self.fenced(reason).await,
            Outcome::Ended { reason } => {
                self.guest_is_down = true;
                self.ended(&reason).await;
            }
            Outcome::Lost { reason } => self.vm_gone(&reason).await,
        }
    }

    async fn captured(&mut self, captured: vm_task::Captured) {
        let vm_task::Captured {
            shipment,
            pause,
            output,
            dirty_bytes,
            device_bytes,
            device_state,
            disk_bytes,
            window,
        } = captured;
        if let Some(dirty) = window {
            self.tell_activity(dirty);
        }
        let epoch = shipment.epoch;
        self.beat.paused(Duration::from_micros(pause.total));
        emit(
            &self.reporter,
            Report::Captured {
                epoch,
                pause_us: pause,
                dirty_bytes,
                device_bytes,
                device_state,
                disk_bytes,
                wire_bytes: shipment.frames.iter().map(Frame::wire_len).sum(),
                output_packets: output.map_or(0, Cut::packets),
                output_bytes: self.output_held(),
            },
        );
        self.times.insert(
            epoch,
            Times {
                captured: Instant::now(),
                acked: None,
                output,
            },
        );
        self.captured = Some(shipment);
        self.step(Event::Captured { epoch }).await;
    }

    pub(super) async fn gateway_outcome(&mut self, outcome: gateway_task::Outcome) {
        use gateway_task::Outcome;
        match outcome {
            Outcome::Committed { epoch, took } => {
                let times = self.times.get(&epoch);
                let commit1 = times
                    .and_then(|t| Some(t.acked?.saturating_duration_since(t.captured)))
                    .unwrap_or_default();
                emit(
                    &self.reporter,
                    Report::Committed {
                        epoch,
                        commit1_us: micros(commit1),
                        commit2_us: micros(took),
                    },
                );
                self.step(Event::Committed { epoch }).await;
            }
            Outcome::CommitFailed { epoch, reason } => {
                tracing::error!(%epoch, reason, "an epoch could not be committed; it is tried again");
                emit(&self.reporter, Report::CommitFailed { epoch, reason });
                self.step(Event::CommitFailed { epoch }).await;
            }
            Outcome::Drained { epoch } => {
                tracing::info!(%epoch, "the gateway is in sync mode");
                self.newest = epoch;
                self.step(Event::Drained).await;
            }
            Outcome::DrainFailed => self.step(Event::DrainFailed).await,
            Outcome::Detached | Outcome::NotDetached => {}
            Outcome::Pressure => {
                self.pressed = true;
                self.checkpoint_due().await;
                if self.machine.capturing() && std::mem::take(&mut self.pressed) {
                    self.relieve();
                }
            }
            Outcome::Fenced { reason } => self.fenced(reason).await,
            Outcome::Lost { reason } => {
                tracing::warn!(
                    reason,
                    "the gateway does not answer; the guest's disk requests wait"
                );
                self.gateway_lost = true;
                emit(&self.reporter, Report::GatewayLost { reason });
            }
            // Without a standby there is nobody to give the VM to: it waits.
            Outcome::Silent { patience } if self.machine.protected() => {
                let seconds = patience.as_secs_f32();
                self.vm_gone(&format!(
                    "the gateway has not answered for {seconds:.1} s; the standby may reach it"
                ))
                .await;
            }
            Outcome::Silent { .. } => {}
            Outcome::Back => {
                tracing::info!("the gateway answers again");
                self.gateway_lost = false;
                emit(&self.reporter, Report::GatewayBack);
            }
        }
    }

    async fn fenced(&mut self, reason: String) {
        tracing::error!(reason, "fenced: the VM is stopped here");
        self.ending.get_or_insert(Ending::Fenced(reason));
        self.step(Event::Fenced).await;
    }

    pub(super) async fn vm_gone(&mut self, reason: &str) {
        tracing::error!(reason, "the VM is lost here");
        self.nobody_else |= matches!(self.machine.phase(), Phase::Unprotected);
        self.ending.get_or_insert(Ending::Lost(reason.to_owned()));
        self.step(Event::VmLost).await;
    }

    pub(super) async fn ended(&mut self, reason: &str) {
        self.ending
            .get_or_insert(Ending::Planned(reason.to_owned()));
        self.step(Event::VmEnded).await;
    }
}
