//! The source's loop: keeps a VM that runs here protected, and carries out what the commit protocol says. The VM was launched by
//! [`protect`](crate::protect()), or taken over by a standby.
//!
//! The protocol itself is in [`commit`](crate::commit). Three tasks do the work and report what came of it:
//! `vm_task` (owns QEMU), `gateway_task` (COMMIT 2) and its watch, `link` (the standby). This loop turns their reports
//! into events, and the protocol's actions into requests; it never waits for any of them.

mod outcomes;
mod switchover;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nbd_server::Epoch;
use qemu_glue::{Cut, GateState, OutputGate, SourceVm};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::checkpoint_channel::Kind;
use crate::command::Command;
use crate::commit::{Action, Event, Phase, Source};
use crate::config::{OnStandbyLoss, ProtectionPolicy};
use crate::ending::{Ending, FAREWELL_LIMIT, POWER_DOWN_LIMIT, until};
use crate::failpoints;
use crate::gateway_task::{self, Place};
use crate::handshake::Hello;
use crate::link::{self, Link, LinkEvent, LinkNumber, Shipment, Timing};
use crate::pulse;
use crate::report::{Report, Reporter, emit};
use crate::rhythm::Beat;
use crate::vm_task;

/// Requests to one task that wait; each task has at most a handful under way.
const QUEUE: usize = 16;
/// The last packets of a guest that powered off get so long to leave.
const LAST_PACKETS: Duration = Duration::from_millis(200);

/// The output gate of the VM.
#[derive(Debug)]
pub(crate) enum Gate {
    /// It is attached.
    There(OutputGate),
    /// It is to be put in front of these network backends when the guest has announced itself; nobody protects the VM
    /// before.
    Later { netdevs: Vec<String> },
}

/// A VM that runs here, and its place at the gateway.
pub(crate) struct Running {
    pub vm: SourceVm,
    pub gate: Gate,
    pub place: Place,
    /// The id under which the gateway knows this source.
    pub owner: String,
    /// The newest epoch of its group, which is in sync mode.
    pub newest: Epoch,
}

/// When the steps of an epoch in flight happened.
#[derive(Debug, Clone, Copy)]
struct Times {
    captured: Instant,
    acked: Option<Instant>,
    /// What the guest had sent by then.
    output: Option<Cut>,
}

pub(crate) struct SourceLoop {
    protection: ProtectionPolicy,
    timing: Timing,
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
    /// The newest epoch when the group was last known to be in sync mode: what the first seal comes after.
    newest: Epoch,
    held: bool,
    gate: Gate,
    gate_state: watch::Receiver<GateState>,
    beat: Beat,
    switchover: Option<switchover::Switchover>,
    /// The guest has powered off; what it sent last may still leave.
    guest_is_down: bool,
    /// The VM was lost while nobody held its memory and nothing was held of its writes: nobody else will ask for the disks.
    nobody_else: bool,
    /// Packets that the gate had dropped when it was last said.
    dropped: u64,
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
    pub(crate) fn new(
        protection: ProtectionPolicy,
        timing: Timing,
        reporter: Reporter,
        running: Running,
    ) -> Self {
        let Running {
            vm,
            gate,
            place,
            owner,
            newest,
        } = running;
        let hello = Hello {
            vm: place.group.clone(),
            source: owner,
            ram_bytes: vm.ram().len(),
            machine: vm.fingerprint().clone(),
            cache_bytes: protection.delta_cache_mib << 20,
        };
        let (attached, gate_state) = match &gate {
            Gate::There(gate) => (Some(gate.clone()), gate.subscribe()),
            Gate::Later { .. } => (None, watch::Sender::default().subscribe()),
        };
        let (vm_sender, vm_requests) = mpsc::channel(QUEUE);
        let (vm_reports, vm_outcomes) = mpsc::channel(QUEUE);
        let (gateway_sender, gateway_requests) = mpsc::channel(QUEUE);
        let (gateway_reports, gateway_outcomes) = mpsc::channel(QUEUE);
        let (link_sender, link_events) = mpsc::channel(QUEUE);
        let mut vm_task = JoinSet::new();
        vm_task.spawn(vm_task::run(
            vm,
            attached,
            place.clone(),
            vm_requests,
            vm_reports,
        ));
        let mut gateway_tasks = JoinSet::new();
        gateway_tasks.spawn(gateway_task::watch(place.clone(), gateway_reports.clone()));
        gateway_tasks.spawn(pulse::run(
            place.clone(),
            protection.gateway_patience(),
            gateway_reports.clone(),
        ));
        gateway_tasks.spawn(gateway_task::run(
            place.clone(),
            gateway_requests,
            gateway_reports,
        ));
        Self {
            machine: Source::new(protection.max_in_flight),
            beat: Beat::new(&protection, Instant::now()),
            protection,
            timing,
            reporter,
            place,
            hello,
            captured: None,
            times: HashMap::new(),
            link: None,
            number: LinkNumber(0),
            pressed: false,
            gateway_lost: false,
            newest,
            held: false,
            gate,
            gate_state,
            switchover: None,
            guest_is_down: false,
            nobody_else: false,
            dropped: 0,
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

    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut stop: watch::Receiver<u32>,
    ) -> Ending {
        let mut power_down_until = None;
        let mut attach_at = None;
        match self.gate {
            Gate::There(_) => self.seek_standby(),
            // A gate would keep the announcement back.
            Gate::Later { .. } => {
                attach_at = Some(tokio::time::Instant::now() + SourceVm::ANNOUNCING);
            }
        }
        loop {
            let due = self.checkpoint_due_at();
            let switchover_until = self.switchover.as_ref().map(|s| s.until);
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
                Some(command) = commands.recv() => self.commanded(command).await,
                () = until(switchover_until) => self.switchover_too_slow().await,
                () = until(attach_at) => {
                    attach_at = None;
                    self.attach_gate().await;
                }
                // An error says that the gate is gone, which it is when QEMU is.
                Ok(()) = self.gate_state.changed() => self.gate_changed().await,
                () = until(due) => self.checkpoint_due().await,
            }
            if let Some(ending) = self.ending.take() {
                self.vm_task.shutdown().await;
                if self.nobody_else {
                    self.hand_back().await;
                }
                return ending;
            }
        }
    }

    /// When the next checkpoint is due, if somebody protects the VM.
    fn checkpoint_due_at(&self) -> Option<tokio::time::Instant> {
        matches!(self.machine.phase(), Phase::Protecting { .. }).then(|| self.beat.due().into())
    }

    /// The next checkpoint. A VM that is held stays stopped after its first one, so there is nothing more to capture
    /// until that one is committed and the VM runs on. Nor is there while nobody seals.
    async fn checkpoint_due(&mut self) {
        self.beat.began(Instant::now());
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
        let actions = self.machine.step(event);
        self.follow_switchover();
        for action in actions {
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
                    let newest = self.newest;
                    let copy = vm_task::Request::CopyBase {
                        number,
                        sender,
                        newest,
                    };
                    self.ask_vm(copy).await;
                }
            }
            Action::Capture => {
                if std::mem::take(&mut self.pressed) {
                    self.relieve();
                }
                self.ask_vm(vm_task::Request::Capture).await;
            }
            Action::CaptureLast => self.ask_vm(vm_task::Request::CaptureLast).await,
            Action::RunOn => self.ask_vm(vm_task::Request::Run).await,
            Action::SendCheckpoint { .. } => self.ship(),
            Action::Commit2 { epoch, standby } => {
                nbd_server::failpoint::hit(failpoints::AFTER_COMMIT1);
                self.ask_gateway(gateway_task::Request::Commit { epoch, standby })
                    .await;
            }
            Action::HoldOutput => self.with_gate(OutputGate::hold),
            Action::PassOutput => self.with_gate(OutputGate::pass),
            Action::ReleaseOutput { epoch } => self.release_output(epoch),
            Action::Commit3 { epoch } => self.commit3(epoch),
            Action::DropStandby => self.drop_standby().await,
            Action::DrainToSync => {
                // No other standby is sought before this one is given up.
                let protection = self.number.protection();
                self.ask_gateway(gateway_task::Request::Drain { protection })
                    .await;
            }
            Action::SeekStandby => {
                if let Some(epoch) = self.machine.committed() {
                    emit(&self.reporter, Report::Unprotected { epoch });
                }
                self.seek_standby();
            }
            Action::StopVm => {
                self.with_gate(OutputGate::close);
                self.vm_task.shutdown().await;
            }
            Action::Yield => self.farewell(Kind::Yield).await,
            Action::End => self.end().await,
        }
    }

    fn with_gate(&self, act: impl FnOnce(&OutputGate)) {
        if let Gate::There(gate) = &self.gate {
            act(gate);
        }
    }

    /// What the guest sent before the cut of `epoch` leaves: invariant 5.
    fn release_output(&mut self, epoch: Epoch) {
        let times = self.times.remove(&epoch);
        if let Some(cut) = times.and_then(|times| times.output) {
            self.with_gate(|gate| gate.release(cut));
        }
    }

    /// The guest has announced itself: the gate can be put in front of it, and then a standby be looked for.
    async fn attach_gate(&mut self) {
        if let Gate::Later { netdevs } = &self.gate {
            let limit = self.protection.output_limit();
            let netdevs = netdevs.clone();
            self.ask_vm(vm_task::Request::AttachGate { netdevs, limit })
                .await;
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
        if self.protection.on_standby_loss == OnStandbyLoss::Pause && !self.held {
            self.held = true;
            self.ask_vm(vm_task::Request::Hold).await;
        }
    }

    fn seek_standby(&mut self) {
        self.number = LinkNumber(self.number.0 + 1);
        self.seeking = JoinSet::new();
        if self.protection.standby.is_empty() {
            return;
        }
        self.seeking.spawn(link::seek(
            self.number,
            self.protection.standby.clone(),
            self.place.stamp(),
            self.hello.clone(),
            self.timing,
            self.protection.compression,
            self.link_sender.clone(),
        ));
    }

    /// The VM ended as planned: first its QEMU goes (nothing is written any more), then the gateway commits what is
    /// held, then the standby may forget. A guest that powered off writes nothing any more either; its QEMU stays until the
    /// last packets, which may leave when all is committed, have left.
    async fn end(&mut self) {
        if !self.guest_is_down {
            self.vm_task.shutdown().await;
        }
        if self.hand_back().await
            && let Gate::There(gate) = &self.gate
        {
            gate.pass();
            let deadline = Instant::now() + LAST_PACKETS;
            while gate.counts().held_bytes > 0 && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        self.vm_task.shutdown().await;
        self.farewell(Kind::End).await;
    }

    /// Gives the disks back to the gateway, which commits what it holds. Says whether it did.
    async fn hand_back(&mut self) -> bool {
        self.ask_gateway(gateway_task::Request::Detach).await;
        let detached = async {
            while let Some(outcome) = self.gateway_outcomes.recv().await {
                match outcome {
                    gateway_task::Outcome::Detached => return true,
                    gateway_task::Outcome::NotDetached | gateway_task::Outcome::Fenced { .. } => {
                        return false;
                    }
                    _ => {}
                }
            }
            false
        };
        let Ok(detached) = tokio::time::timeout(FAREWELL_LIMIT, detached).await else {
            tracing::warn!("the gateway did not take the disks back in time");
            return false;
        };
        detached
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
