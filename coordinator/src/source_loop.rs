//! `epochgate protect`: launches the VM and carries out what the commit protocol says.
//!
//! The protocol itself is in [`commit`](crate::commit). Three tasks do the work and report what came of it:
//! `vm_task` (owns QEMU), `gateway_task` (COMMIT 2) and its watch, `link` (the standby). This loop turns their reports
//! into events, and the protocol's actions into requests; it never waits for any of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nbd_server::Epoch;
use nbd_server::control::client::{Client, ControlError};
use qemu_glue::{RuntimePlace, SourceVm};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::checkpoint_channel::{Frame, Kind};
use crate::cold_start::{self, NotStarted};
use crate::commit::{Action, Event, Phase, Source};
use crate::config::{ConfigError, OnStandbyLoss, ProtectConfig};
use crate::disks;
use crate::ending::{Ending, FAREWELL_LIMIT, POWER_DOWN_LIMIT, until};
use crate::failpoints;
use crate::gateway_task::{self, Place};
use crate::handshake::Hello;
use crate::leftovers::remove_stale_ram;
use crate::link::{self, Link, LinkEvent, LinkNumber, Shipment, Timing};
use crate::pulse;
use crate::report::{Report, Reporter, emit, micros};
use crate::saved_state;
use crate::vm_task;

/// Requests to one task that wait; each task has at most a handful under way.
const QUEUE: usize = 16;

/// Why a VM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The gateway said no, or does not answer.
    #[error("the gateway does not give this VM its disks")]
    Gateway(#[source] ControlError),
    /// It can't or may not be started here.
    #[error(transparent)]
    NotStarted(#[from] NotStarted),
    /// The disks of the configuration are not those of the group.
    #[error(transparent)]
    Disks(#[from] disks::DisksError),
    /// QEMU did not start.
    #[error("the VM could not be started")]
    Vm(#[source] qemu_glue::Error),
}

/// Runs the VM until it ends. `stop` counts the requests to stop: one for a clean stop, two for a quick one.
pub async fn protect(
    config: ProtectConfig,
    reporter: Reporter,
    stop: watch::Receiver<u32>,
) -> Result<Ending, ProtectError> {
    config.check()?;
    remove_stale_ram(&config.vm);
    let group = config.vm.name.clone();
    let owner = format!("{}:{}", config.host, uuid::Uuid::new_v4());
    let client = Client::connect(&config.gateway)
        .await
        .map_err(ProtectError::Gateway)?;
    cold_start::check(&client, &config).await?;
    let attached = client
        .attach(&group, &owner)
        .await
        .map_err(ProtectError::Gateway)?;
    let place = Place {
        client,
        group,
        generation: attached.generation,
    };
    let attachments = disks::attachments(&config.nbd, &config.disks, &attached.exports)?;
    let runtime = RuntimePlace::source(config.runtime_dir.join(&config.vm.name));
    let launched = match &config.saved_state {
        None => SourceVm::launch(&config.vm, &runtime, &attachments).await,
        Some(saved) => saved_state::restore(&config.vm, &runtime, &attachments, saved).await,
    };
    let mut vm = launched.map_err(ProtectError::Vm)?;
    let tracker = vm.start_tracking().await.map_err(ProtectError::Vm)?;
    vm.resume().await.map_err(ProtectError::Vm)?;
    emit(
        &reporter,
        Report::VmStarted {
            vm: place.group.clone(),
            pid: vm.pid(),
            qemu: vm.fingerprint().qemu_version().to_owned(),
            dirty_tracker: tracker.to_string(),
            generation: place.generation,
            ram_bytes: vm.ram().len(),
        },
    );
    let hello = Hello {
        vm: place.group.clone(),
        source: owner,
        ram_bytes: vm.ram().len(),
        machine: vm.fingerprint().clone(),
    };
    let ending = SourceLoop::new(config, reporter.clone(), place, hello, vm)
        .run(stop)
        .await;
    ending.report(&reporter);
    Ok(ending)
}

/// When the steps of an epoch in flight happened.
#[derive(Debug, Clone, Copy)]
struct Times {
    captured: Instant,
    acked: Option<Instant>,
}

struct SourceLoop {
    config: ProtectConfig,
    reporter: Reporter,
    place: Place,
    hello: Hello,
    machine: Source,
    /// Captured and waiting for [`Action::SendCheckpoint`].
    captured: Option<Shipment>,
    times: HashMap<Epoch, Times>,
    link: Option<Link>,
    number: LinkNumber,
    /// The gateway said that memory runs short since the last capture began.
    pressed: bool,
    /// The gateway does not answer: nothing can be sealed.
    gateway_lost: bool,
    held: bool,
    vm: mpsc::Sender<vm_task::Request>,
    gateway: mpsc::Sender<gateway_task::Request>,
    vm_outcomes: mpsc::Receiver<vm_task::Outcome>,
    gateway_outcomes: mpsc::Receiver<gateway_task::Outcome>,
    link_events: mpsc::Receiver<(LinkNumber, LinkEvent)>,
    link_sender: mpsc::Sender<(LinkNumber, LinkEvent)>,
    /// The VM's task: dropping it kills QEMU.
    vm_task: JoinSet<()>,
    /// The gateway's tasks end with the loop.
    _gateway_tasks: JoinSet<()>,
    seeking: JoinSet<()>,
    ending: Option<Ending>,
}

impl SourceLoop {
    fn new(
        config: ProtectConfig,
        reporter: Reporter,
        place: Place,
        hello: Hello,
        vm: SourceVm,
    ) -> Self {
        let (vm_sender, vm_requests) = mpsc::channel(QUEUE);
        let (vm_reports, vm_outcomes) = mpsc::channel(QUEUE);
        let (gateway_sender, gateway_requests) = mpsc::channel(QUEUE);
        let (gateway_reports, gateway_outcomes) = mpsc::channel(QUEUE);
        let (link_sender, link_events) = mpsc::channel(QUEUE);
        let mut vm_task = JoinSet::new();
        vm_task.spawn(vm_task::run(vm, place.clone(), vm_requests, vm_reports));
        let mut gateway_tasks = JoinSet::new();
        gateway_tasks.spawn(gateway_task::watch(place.clone(), gateway_reports.clone()));
        gateway_tasks.spawn(pulse::run(
            place.clone(),
            config.gateway_patience(),
            gateway_reports.clone(),
        ));
        gateway_tasks.spawn(gateway_task::run(
            place.clone(),
            gateway_requests,
            gateway_reports,
        ));
        Self {
            machine: Source::new(config.max_in_flight),
            config,
            reporter,
            place,
            hello,
            captured: None,
            times: HashMap::new(),
            link: None,
            number: LinkNumber(0),
            pressed: false,
            gateway_lost: false,
            held: false,
            vm: vm_sender,
            gateway: gateway_sender,
            vm_outcomes,
            gateway_outcomes,
            link_events,
            link_sender,
            vm_task,
            _gateway_tasks: gateway_tasks,
            seeking: JoinSet::new(),
            ending: None,
        }
    }

    async fn run(mut self, mut stop: watch::Receiver<u32>) -> Ending {
        let mut due = tokio::time::interval(self.config.interval());
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut power_down_until = None;
        self.seek_standby();
        loop {
            tokio::select! {
                biased;
                Some(outcome) = self.gateway_outcomes.recv() => self.gateway_outcome(outcome).await,
                Some((number, event)) = self.link_events.recv() => {
                    if number == self.number {
                        self.link_event(event).await;
                    }
                }
                outcome = self.vm_outcomes.recv() => match outcome {
                    Some(outcome) => self.vm_outcome(outcome).await,
                    None => self.vm_gone("the VM's task ended").await,
                },
                Ok(()) = stop.changed() => {
                    let requests = *stop.borrow();
                    if requests == 1 {
                        tracing::info!("stopping: the guest is asked to power off; once more to end it now");
                        self.ask_vm(vm_task::Request::PowerDown).await;
                        power_down_until = Some(tokio::time::Instant::now() + POWER_DOWN_LIMIT);
                    } else {
                        self.ended("the operator ended the VM at once").await;
                    }
                }
                () = until(power_down_until) => {
                    self.ended("the guest did not power off in time and was ended").await;
                }
                _ = due.tick() => self.checkpoint_due().await,
            }
            if let Some(ending) = self.ending.take() {
                self.vm_task.shutdown().await;
                return ending;
            }
        }
    }

    /// The next checkpoint. A VM that is held stays stopped after its first one, so there is nothing more to capture
    /// until that one is committed and the VM runs on. Nor is there while nobody seals.
    async fn checkpoint_due(&mut self) {
        if self.gateway_lost {
            return;
        }
        if !self.held || self.machine.in_flight() == 0 {
            self.step(Event::CheckpointDue).await;
        }
    }

    /// Feeds an event to the protocol and carries out what it says.
    async fn step(&mut self, event: Event) {
        let was_protected = self.machine.protected();
        for action in self.machine.step(event) {
            self.carry_out(action).await;
        }
        if !was_protected
            && self.machine.protected()
            && let (Phase::Protecting { standby, .. }, Some(epoch)) =
                (self.machine.phase(), self.machine.committed())
        {
            let standby = standby.clone();
            emit(&self.reporter, Report::Protected { standby, epoch });
            if std::mem::take(&mut self.held) {
                self.ask_vm(vm_task::Request::Run).await;
            }
        }
    }

    async fn carry_out(&mut self, action: Action) {
        match action {
            Action::CopyBase => {
                if let Some(link) = &self.link {
                    let sender = link.sender.clone();
                    let number = self.number;
                    self.ask_vm(vm_task::Request::CopyBase { number, sender })
                        .await;
                }
            }
            Action::Capture => {
                if std::mem::take(&mut self.pressed) {
                    self.relieve();
                }
                self.ask_vm(vm_task::Request::Capture).await;
            }
            Action::SendCheckpoint { .. } => self.ship(),
            Action::Commit2 { epoch, standby } => {
                nbd_server::failpoint::hit(failpoints::AFTER_COMMIT1);
                self.ask_gateway(gateway_task::Request::Commit { epoch, standby })
                    .await;
            }
            // Where the output gate will hang; until then packets pass (README, "What is not there yet").
            Action::ReleaseOutput { .. } => {}
            Action::Commit3 { epoch } => self.commit3(epoch),
            Action::DropStandby => self.drop_standby().await,
            Action::DrainToSync => self.ask_gateway(gateway_task::Request::Drain).await,
            Action::SeekStandby => {
                if let Some(epoch) = self.machine.committed() {
                    emit(&self.reporter, Report::Unprotected { epoch });
                }
                self.seek_standby();
            }
            Action::StopVm => self.vm_task.shutdown().await,
            Action::Yield => self.farewell(Kind::Yield).await,
            Action::End => self.end().await,
        }
    }

    /// The guest's writes wait for memory while QEMU's `stop` waits for them: let them in, the checkpoint that frees
    /// the memory is on its way.
    fn relieve(&self) {
        let place = self.place.clone();
        tokio::spawn(async move {
            if let Err(error) = place.client.relieve(&place.group, place.generation).await {
                tracing::warn!(%error, "waiting writes could not be let in");
            }
        });
    }

    fn ship(&mut self) {
        if let (Some(link), Some(shipment)) = (&self.link, self.captured.take()) {
            link.ship(shipment);
        }
    }

    fn commit3(&mut self, epoch: Epoch) {
        nbd_server::failpoint::hit(failpoints::AFTER_COMMIT2);
        if let Some(link) = &self.link {
            link.commit3(epoch);
        }
    }

    async fn drop_standby(&mut self) {
        self.link = None;
        self.captured = None;
        self.times.clear();
        if self.config.on_standby_loss == OnStandbyLoss::Pause && !self.held {
            self.held = true;
            self.ask_vm(vm_task::Request::Hold).await;
        }
    }

    fn seek_standby(&mut self) {
        self.number = LinkNumber(self.number.0 + 1);
        let timing = Timing {
            heartbeat: Duration::from_millis(self.config.heartbeat_ms),
            suspicion: Duration::from_millis(self.config.suspicion_ms),
        };
        self.seeking = JoinSet::new();
        self.seeking.spawn(link::seek(
            self.number,
            self.config.standby.clone(),
            self.place.stamp(),
            self.hello.clone(),
            timing,
            self.link_sender.clone(),
        ));
    }

    async fn link_event(&mut self, event: LinkEvent) {
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
            LinkEvent::Lost { reason } => self.standby_lost(reason).await,
        }
    }

    async fn standby_lost(&mut self, reason: String) {
        tracing::warn!(reason, "the standby is lost: the VM is not protected");
        emit(&self.reporter, Report::StandbyLost { reason });
        self.step(Event::StandbyLost).await;
    }

    async fn vm_outcome(&mut self, outcome: vm_task::Outcome) {
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
            Outcome::Fenced { reason } => self.fenced(reason).await,
            Outcome::Ended { reason } => self.ended(&reason).await,
            Outcome::Lost { reason } => self.vm_gone(&reason).await,
        }
    }

    async fn captured(&mut self, captured: vm_task::Captured) {
        let vm_task::Captured {
            shipment,
            pause,
            dirty_bytes,
            device_bytes,
            disk_bytes,
        } = captured;
        let epoch = shipment.epoch;
        emit(
            &self.reporter,
            Report::Captured {
                epoch,
                pause_us: pause,
                dirty_bytes,
                device_bytes,
                disk_bytes,
                wire_bytes: shipment.frames.iter().map(Frame::wire_len).sum(),
            },
        );
        self.times.insert(
            epoch,
            Times {
                captured: Instant::now(),
                acked: None,
            },
        );
        self.captured = Some(shipment);
        self.step(Event::Captured { epoch }).await;
    }

    async fn gateway_outcome(&mut self, outcome: gateway_task::Outcome) {
        use gateway_task::Outcome;
        match outcome {
            Outcome::Committed { epoch, took } => {
                let times = self.times.remove(&epoch);
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
                self.step(Event::Drained).await;
            }
            Outcome::DrainFailed => self.step(Event::DrainFailed).await,
            Outcome::Detached => {}
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

    async fn vm_gone(&mut self, reason: &str) {
        tracing::error!(reason, "the VM is lost here");
        self.ending.get_or_insert(Ending::Lost(reason.to_owned()));
        self.step(Event::VmLost).await;
    }

    async fn ended(&mut self, reason: &str) {
        self.ending
            .get_or_insert(Ending::Planned(reason.to_owned()));
        self.step(Event::VmEnded).await;
    }

    /// The VM ended as planned: first its QEMU goes (nothing is written any more), then the gateway commits what is
    /// held, then the standby may forget.
    async fn end(&mut self) {
        self.vm_task.shutdown().await;
        self.ask_gateway(gateway_task::Request::Detach).await;
        let detached = async {
            while let Some(outcome) = self.gateway_outcomes.recv().await {
                if matches!(
                    outcome,
                    gateway_task::Outcome::Detached | gateway_task::Outcome::Fenced { .. }
                ) {
                    return;
                }
            }
        };
        if tokio::time::timeout(FAREWELL_LIMIT, detached)
            .await
            .is_err()
        {
            tracing::warn!("the gateway did not take the disks back in time");
        }
        self.farewell(Kind::End).await;
    }

    /// The last word to the standby, if it is there. A Yield saves it the time to become suspicious.
    async fn farewell(&mut self, kind: Kind) {
        if let Some(link) = self.link.take() {
            let reason = self.ending.as_ref().map_or("", Ending::reason);
            link.finish(kind, reason, FAREWELL_LIMIT).await;
        }
    }

    async fn ask_vm(&mut self, request: vm_task::Request) {
        // A task that is gone has said why, or is about to.
        let _ = self.vm.send(request).await;
    }

    async fn ask_gateway(&mut self, request: gateway_task::Request) {
        let _ = self.gateway.send(request).await;
    }
}
