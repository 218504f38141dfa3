//! What the loop of a source does around its machine: `source_loop`, `vm_task`, `gateway_task`, `link` and `taken_over` of the coordinator,
//! restated in small steps. It decides nothing that the machine decides. Its guest, its requests and its channel are in files of their own.

use bytes::Bytes;
use coordinator::checkpoint_channel::Kind;
use coordinator::commit::{Action, Event as Told, Phase};
use nbd_server::group::barriers::{Input, Protection};
use nbd_server::{Epoch, Generation};
use rand::Rng;

use super::control::Ask;
use super::guest::{Memory, RAM, Vm};
use super::hosts::{AtGateway, Capture, Host, Source};
use super::network::{A, B, GATEWAY, Message, Node, Process};
use super::queue::{Event, Timer};
use super::source_link::SEEK_AGAIN;
use super::world::World;
use crate::blocks::{UNIT, fill, shown};
use crate::{Violation, violation};

impl World<'_> {
    /// `epochgate protect --cold-start` on a host: the VM boots from the disks.
    pub fn cold_start(&mut self, node: Node) {
        let process = self.fresh_process();
        let id = format!("host{node}:{process}");
        let nobody = (Generation(0), Epoch(0));
        let vm = Vm::new(Memory::from(vec![0; RAM]));
        let source = Source::new(process, id, nobody, self.in_flight, vm);
        self.hosts[node] = Host::Source(Box::new(source));
        self.trace
            .note(self.now, format_args!("cold start on host {node}"));
        self.ask_to_attach(node);
    }

    pub(super) fn ask_to_attach(&mut self, node: Node) {
        let number = self.number();
        let Some(source) = self.source(node) else {
            return;
        };
        source.vm.stopped = true;
        source.at_gateway = AtGateway::Waits(number);
        let (process, owner) = (source.process, source.id.clone());
        let ask = Ask::Input(Input::AttachSource { owner });
        self.send(node, GATEWAY, process, Message::Ask { number, ask });
    }

    /// The disks are this source's: it boots.
    pub(super) fn boots(
        &mut self,
        node: Node,
        generation: Generation,
        newest: Epoch,
    ) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        source.generation = generation;
        source.newest = newest;
        let (process, id) = (source.process, source.id.clone());
        if self.gateway.is_none() || self.attach(process, &id).is_some() {
            // Somebody was faster, or the gateway is gone again.
            self.hosts[node] = Host::Down;
            self.at(self.now + 5_000, Event::StartStandby(node));
            return Ok(());
        }
        let Ok(found) = self.read_all(process) else {
            self.hosts[node] = Host::Down;
            self.at(self.now + 5_000, Event::StartStandby(node));
            return Ok(());
        };
        for place in self.ledger.settle(&found)? {
            // Nobody reads a torn unit: it is written over by who finds it.
            let stamp = self.ledger.fresh();
            let mut unit = vec![0; UNIT];
            fill(stamp, place, &mut unit);
            self.storage.repair(place, &unit);
            self.ledger.view[place] = vec![stamp];
            self.ledger.live[place] = stamp;
            self.ledger.may_have_written(place, stamp);
            self.ledger.view[place] = vec![stamp];
        }
        // What nobody has flushed by now may have been lost before: the reference does not go on from it.
        self.ledger.cold_since = generation;
        let chain: u64 = self.random.random();
        self.ledger.seen = (0, chain);
        let memory = Memory::booted(&self.ledger.live, chain);
        if let Some(source) = self.source(node) {
            source.vm = Vm::new(memory);
            source.at_gateway = AtGateway::Idle;
        }
        self.trace.reach("boot");
        self.runs(node)
    }

    /// The guest runs on this host.
    pub fn runs(&mut self, node: Node) -> Result<(), Violation> {
        self.vm_seen = self.now;
        let Some(process) = self.process_of(node) else {
            return Ok(());
        };
        let interval = self.interval;
        self.later(node, process, 100, Timer::Guest);
        self.later(node, process, interval, Timer::Checkpoint);
        self.later(node, process, 200, Timer::Watch);
        if self.source(node).is_some_and(|source| source.seeking) {
            self.later(node, process, 300, Timer::Seek);
        }
        Ok(())
    }

    /// The guest goes on here, after a takeover at `epoch`, from this memory.
    pub fn becomes_source(
        &mut self,
        node: Node,
        process: Process,
        id: String,
        (generation, epoch): (Generation, Epoch),
        ram: Vec<u8>,
    ) -> Result<(), Violation> {
        let memory = Memory::from(ram);
        self.ledger.resumes(memory.sent())?;
        let found = self.read_all(process);
        let vm = Vm::new(memory);
        let mut source = Source::new(process, id, (generation, epoch), self.in_flight, vm);
        source.seeking = self.protect_again;
        if let Ok(found) = found
            && generation == self.ledger.standing.generation
        {
            for (place, sectors) in found.iter().enumerate() {
                let stamp = source.vm.memory.stamp(place);
                if *sectors != [Some(shown(stamp)); 2] {
                    return violation!(
                        "7: after the takeover unit {place} shows {sectors:?}, and the guest remembers {stamp:x}"
                    );
                }
            }
        }
        self.hosts[node] = Host::Source(Box::new(source));
        self.trace.reach("takeover");
        self.runs(node)
    }

    /// A timer of a source.
    pub fn source_timer(&mut self, node: Node, timer: Timer) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let process = source.process;
        match timer {
            Timer::Guest => self.guest_acts(node),
            Timer::Checkpoint => {
                let interval = self.interval;
                self.later(node, process, interval, Timer::Checkpoint);
                self.tell(node, Told::CheckpointDue)
            }
            Timer::Seek => {
                self.seek(node);
                Ok(())
            }
            Timer::NextRequest => {
                source.at_gateway = AtGateway::Idle;
                self.next_request(node);
                Ok(())
            }
            Timer::Base(link) => self.base_piece(node, link),
            Timer::Watch => {
                let number = self.number();
                let Some(source) = self.source(node) else {
                    return Ok(());
                };
                source.watch = Some(number);
                let ask = Ask::Watch(source.generation);
                self.send(node, GATEWAY, process, Message::Ask { number, ask });
                Ok(())
            }
            Timer::Again(number) => {
                if let Some(request) = source.vm.requests.get(&number).copied() {
                    self.send(node, GATEWAY, process, Message::Disk { request });
                }
                Ok(())
            }
            Timer::SealAgain => {
                if source.capture == Some(Capture::Rests) {
                    self.ask_to_seal(node);
                }
                Ok(())
            }
            Timer::Heartbeat(_) | Timer::TakeOver => Ok(()),
        }
    }

    /// Something arrives at a source.
    pub fn source_receives(&mut self, node: Node, message: Message) -> Result<(), Violation> {
        match message {
            Message::Done { request, outcome } => self.request_done(node, &request, outcome),
            Message::Reply { number, reply } => self.reply_arrives(node, number, reply),
            Message::Fenced => {
                if let Some(source) = self.source(node) {
                    source.watch = None;
                }
                self.fenced_or_lost(node)
            }
            Message::Pressure => self.pressure(node),
            Message::Welcome { link, standby } => self.joined(node, link, standby),
            Message::Refused => {
                if let Some(source) = self.source(node) {
                    source.greeted = None;
                    let process = source.process;
                    self.later(node, process, SEEK_AGAIN, Timer::Seek);
                }
                Ok(())
            }
            Message::Frame { link, bytes } => self.frame_at_source(node, link, &bytes),
            Message::Closed { link } => {
                if self
                    .source(node)
                    .is_some_and(|source| source.link == Some(link))
                {
                    return self.standby_lost(node);
                }
                if let Some(source) = self.source(node)
                    && source.greeted == Some(link)
                {
                    source.greeted = None;
                    let process = source.process;
                    self.later(node, process, SEEK_AGAIN, Timer::Seek);
                }
                Ok(())
            }
            Message::Hello { link, .. } => {
                self.refuse_hello(node, link);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The event stream ended: it is asked again, and the answer tells whether the generation is over.
    pub(super) fn fenced_or_lost(&mut self, node: Node) -> Result<(), Violation> {
        if let Some(process) = self.process_of(node) {
            self.later(node, process, 50, Timer::Watch);
        }
        Ok(())
    }

    /// The disks belong to somebody else.
    pub fn fenced(&mut self, node: Node) -> Result<(), Violation> {
        self.trace
            .note(self.now, format_args!("host {node} is fenced"));
        self.trace.reach("fenced");
        self.tell(node, Told::Fenced)
    }

    /// The VM can't go on here.
    pub fn vm_lost(&mut self, node: Node, why: &str) -> Result<(), Violation> {
        self.trace.note(
            self.now,
            format_args!("the VM on host {node} is lost: {why}"),
        );
        self.tell(node, Told::VmLost)
    }

    pub(super) fn standby_lost(&mut self, node: Node) -> Result<(), Violation> {
        self.trace
            .note(self.now, format_args!("host {node} has lost its standby"));
        self.tell(node, Told::StandbyLost)
    }

    /// Feeds an event to the machine of a source and carries out what it says.
    pub fn tell(&mut self, node: Node, event: Told) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let was_protected = source.machine.protected();
        let actions = source.machine.step(event);
        for action in actions {
            self.carry_out(node, action)?;
        }
        if let Some(source) = self.source(node)
            && source.machine.protected()
            && !was_protected
        {
            self.trace.reach("protected");
        }
        self.next_request(node);
        let over = self
            .source(node)
            .is_some_and(|source| *source.machine.phase() == Phase::Over && !source.ending);
        if over {
            self.host_ends(node);
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, node: Node, action: Action) -> Result<(), Violation> {
        let number = self.number();
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let process = source.process;
        match action {
            Action::CopyBase => {
                source.protection = Protection(source.protection.0 + 1);
                source.vm.memory.track();
                source.base = 0;
                if let Some(link) = source.link {
                    self.later(node, process, 200, Timer::Base(link));
                }
            }
            Action::Capture => {
                source.capture = Some(Capture::Stopping);
                source.vm.stopped = true;
                if std::mem::take(&mut source.pressed) {
                    let ask = Ask::Relieve(source.generation);
                    self.send(node, GATEWAY, process, Message::Ask { number, ask });
                }
                self.seal_if_stopped(node)?;
            }
            Action::SendCheckpoint { .. } => {
                let (link, frames) = (source.link, source.captured.take());
                if let (Some(link), Some(frames)) = (link, frames) {
                    for frame in frames {
                        self.send_frame(node, link, &frame);
                    }
                }
            }
            Action::Commit2 { .. } | Action::DrainToSync => source.requests.push_back(action),
            // A switchover is not simulated.
            Action::CaptureLast | Action::RunOn => {}
            // What the gate does follows from the phase, see `source_guest`.
            Action::HoldOutput => {}
            Action::PassOutput => self.release(node, None)?,
            Action::ReleaseOutput { epoch } => self.release(node, Some(epoch))?,
            Action::Commit3 { epoch } => self.say(node, Kind::Commit3, epoch, Bytes::new()),
            Action::DropStandby => {
                source.captured = None;
                self.close_link_of(node);
            }
            Action::SeekStandby => {
                source.seeking = true;
                source.greeted = None;
                self.later(node, process, 200, Timer::Seek);
            }
            Action::StopVm => source.vm.stopped = true,
            Action::Yield => self.say(node, Kind::Yield, Epoch(0), Bytes::new()),
            Action::End => {
                source.ending = true;
                source.requests.push_back(Action::End);
                self.say(node, Kind::End, Epoch(0), Bytes::new());
            }
        }
        Ok(())
    }

    /// A process ends by itself; a standby starts in its place.
    pub fn host_ends(&mut self, node: Node) {
        self.close_link_of(node);
        if let Some(process) = self.process_of(node) {
            self.attached.remove(&process);
        }
        self.hosts[node] = Host::Down;
        let after = self.random.random_range(2_000..60_000);
        self.at(self.now + after, Event::StartStandby(node));
    }

    /// An operator gives up the running VMs.
    pub fn give_up_vms(&mut self, why: &str) -> Result<(), Violation> {
        for node in [A, B] {
            if self.source(node).is_some() {
                self.excused = true;
                self.vm_lost(node, why)?;
                self.host_ends(node);
            }
        }
        Ok(())
    }
}
