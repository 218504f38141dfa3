//! What the loop of a source does around its machine: `source_loop`, `vm_task`, `gateway_task`, `link` and `taken_over` of the coordinator,
//! restated in small steps, and the guest. It decides nothing that the machine decides.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use coordinator::checkpoint::{frames, page_payloads};
use coordinator::checkpoint_channel::{
    Frame, HEADER_BYTES, Header, Kind, Stamp as FrameStamp, VmId,
};
use coordinator::commit::{Action, Event as Told, Phase, Source as SourceMachine};
use nbd_server::control::api::ErrorKind;
use nbd_server::group::barriers::Input;
use nbd_server::{Epoch, Generation};
use rand::Rng;

use super::gateway_side::{Ask, Reply};
use super::guest::{Memory, PAGE, RAM, Request, Vm, What};
use super::world::{
    A, AtGateway, B, Capture, DiskOutcome, Event, GATEWAY, Host, Link, Message, Node, Process,
    Source, Timer, World,
};
use crate::blocks::{CLEARED, DISKS, UNIT, UNITS, fill, shown};
use crate::gateway::GROUP;
use crate::planted::Planted;
use crate::{Violation, violation};

/// Between two attempts to reach a gateway that does not answer.
const RECONNECT: u64 = 2_000;
/// Between two attempts at what the gateway could not do.
const RETRY: u64 = 25_000;
/// Between two looks for a standby.
const SEEK_AGAIN: u64 = 20_000;
/// Pieces of the first copy.
const BASE_PIECES: usize = 3;

impl World<'_> {
    /// `epochgate protect --cold-start` on a host: the VM boots from the disks.
    pub fn cold_start(&mut self, node: Node) {
        let process = self.fresh_process();
        let id = format!("host{node}:{process}");
        let source = Source {
            process,
            id: id.clone(),
            generation: Generation(0),
            machine: SourceMachine::new(self.in_flight),
            vm: Vm::new(Memory::from(vec![0; RAM])),
            output: Vec::new(),
            held: VecDeque::new(),
            requests: VecDeque::new(),
            at_gateway: AtGateway::Idle,
            capture: None,
            captured: None,
            link: None,
            greeted: None,
            seeking: true,
            pressed: false,
            base: 0,
            last_heard: self.now,
            watch: None,
            progress: 0,
            ending: false,
        };
        self.hosts[node] = Host::Source(Box::new(source));
        self.trace
            .note(self.now, format_args!("cold start on host {node}"));
        self.ask_to_attach(node);
    }

    fn ask_to_attach(&mut self, node: Node) {
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
    fn boots(&mut self, node: Node, generation: Generation) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        source.generation = generation;
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

    /// The guest goes on here, after a takeover, from this memory.
    pub fn becomes_source(
        &mut self,
        node: Node,
        process: Process,
        id: String,
        generation: Generation,
        ram: Vec<u8>,
    ) -> Result<(), Violation> {
        let memory = Memory::from(ram);
        self.ledger.resumes(memory.sent())?;
        let found = self.read_all(process);
        let source = Source {
            process,
            id,
            generation,
            machine: SourceMachine::new(self.in_flight),
            vm: Vm::new(memory),
            output: Vec::new(),
            held: VecDeque::new(),
            requests: VecDeque::new(),
            at_gateway: AtGateway::Idle,
            capture: None,
            captured: None,
            link: None,
            greeted: None,
            seeking: self.protect_again,
            pressed: false,
            base: 0,
            last_heard: self.now,
            watch: None,
            progress: 0,
            ending: false,
        };
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
            Timer::Heartbeat(_) | Timer::TakeOver => Ok(()),
        }
    }

    fn guest_acts(&mut self, node: Node) -> Result<(), Violation> {
        self.vm_seen = self.now;
        let busy = self.random.random_ratio(1, 3);
        let pause = self
            .random
            .random_range(if busy { 50..400 } else { 300..3_000 });
        let kind = self.random.random_range(0..20);
        let count = self.random.random_range(1..=4);
        let disk = self.random.random_range(0..DISKS);
        let place = disk * UNITS + self.random.random_range(0..=UNITS - count);
        let fresh: u64 = self.random.random();
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let process = source.process;
        if source.vm.stopped || source.ending {
            return Ok(());
        }
        self.later(node, process, pause, Timer::Guest);
        let number = self.number();
        let stamp = self.ledger.fresh() | if kind == 0 { CLEARED } else { 0 };
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let vm = &mut source.vm;
        let what = match kind {
            0..10 => What::Write { stamp },
            10..13 => What::Read,
            13 => What::Flush,
            14..17 => {
                let at = usize::try_from(fresh % 4096).unwrap_or_default();
                vm.memory.scribble(at, fresh);
                return Ok(());
            }
            _ => {
                let before = vm.memory.sent();
                let packet = vm.memory.send(fresh);
                self.ledger.sent(packet, before);
                return self.packet(node, packet);
            }
        };
        let count = if what == What::Flush { 0 } else { count };
        if vm.requests.len() >= 4 || !vm.is_free(place, count) {
            return Ok(());
        }
        let request = Request {
            number,
            place,
            count,
            what,
        };
        vm.requests.insert(number, request);
        self.send(node, GATEWAY, process, Message::Disk { request });
        Ok(())
    }

    /// A packet waits for its epoch, or leaves at once if nothing protects the VM.
    fn packet(&mut self, node: Node, packet: (u64, u64)) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let holds = matches!(
            source.machine.phase(),
            Phase::Protecting { .. } | Phase::Draining
        );
        if holds {
            source.output.push(packet);
            return Ok(());
        }
        let generation = source.generation;
        self.ledger.sees(generation, packet)
    }

    fn release(&mut self, node: Node, epoch: Option<Epoch>) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let generation = source.generation;
        let mut leaving = Vec::new();
        while let Some((first, packets)) = source.held.front()
            && epoch.is_none_or(|epoch| *first <= epoch)
        {
            leaving.push((*first, packets.clone()));
            source.held.pop_front();
        }
        let open = if epoch.is_none() {
            std::mem::take(&mut source.output)
        } else {
            Vec::new()
        };
        for (epoch, packets) in leaving {
            let fenced = generation < self.ledger.cold_since;
            if !packets.is_empty()
                && !fenced
                && !self.ledger.is_committed(generation, epoch)
                && self.ledger.standing.generation == generation
            {
                return violation!("5: packets of epoch {epoch} leave before its record");
            }
            for packet in packets {
                self.ledger.sees(generation, packet)?;
            }
        }
        for packet in open {
            self.ledger.sees(generation, packet)?;
        }
        Ok(())
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
    fn fenced_or_lost(&mut self, node: Node) -> Result<(), Violation> {
        if let Some(process) = self.process_of(node) {
            self.later(node, process, 50, Timer::Watch);
        }
        Ok(())
    }

    fn request_done(
        &mut self,
        node: Node,
        request: &Request,
        outcome: DiskOutcome,
    ) -> Result<(), Violation> {
        let current = self.ledger.standing.generation;
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let process = source.process;
        if !source.vm.requests.contains_key(&request.number) {
            return Ok(());
        }
        match outcome {
            DiskOutcome::Lost => {
                self.later(node, process, RECONNECT, Timer::Again(request.number));
                return Ok(());
            }
            DiskOutcome::Failed => {
                self.excused = true;
                return self.vm_lost(node, "its disk failed");
            }
            DiskOutcome::Done(found) => {
                source.progress += 1;
                source.vm.requests.remove(&request.number);
                let places = request.place..request.place + request.count;
                match request.what {
                    What::Write { stamp } => {
                        for place in places {
                            source.vm.memory.wrote(place, stamp);
                        }
                    }
                    What::Read => {
                        for (place, sectors) in places.zip(found) {
                            let stamp = source.vm.memory.stamp(place);
                            if sectors != [Some(shown(stamp)); 2] && source.generation == current {
                                return violation!(
                                    "8: unit {place} reads as {sectors:?}, and the guest wrote {stamp:x}"
                                );
                            }
                        }
                    }
                    What::Flush => {}
                }
            }
        }
        self.seal_if_stopped(node)
    }

    /// The guest is stopped when nothing is under way.
    fn seal_if_stopped(&mut self, node: Node) -> Result<(), Violation> {
        let number = self.number();
        let planted = self.planted;
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.capture != Some(Capture::Stopping) || !source.vm.requests.is_empty() {
            return Ok(());
        }
        source.capture = Some(Capture::Sealing(number));
        let (process, ask) = (source.process, Ask::Seal(source.generation));
        if planted == Some(Planted::ContBeforeSeal) {
            source.vm.stopped = false;
            self.later(node, process, 10, Timer::Guest);
        }
        self.send(node, GATEWAY, process, Message::Ask { number, ask });
        Ok(())
    }

    fn reply_arrives(&mut self, node: Node, number: u64, reply: Reply) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let process = source.process;
        if source.watch == Some(number) {
            match reply {
                Reply::Error(ErrorKind::Fenced) => return self.fenced(node),
                Reply::Done => {}
                _ => {
                    source.watch = None;
                    self.later(node, process, RECONNECT, Timer::Watch);
                }
            }
            return Ok(());
        }
        if source.capture == Some(Capture::Sealing(number)) {
            return self.sealed(node, reply);
        }
        if source.at_gateway != AtGateway::Waits(number) {
            return Ok(());
        }
        if source.generation == Generation(0) {
            return match reply {
                Reply::Good(answer) => self.boots(node, answer.generation),
                Reply::Unreachable => {
                    source.at_gateway = AtGateway::Rests;
                    self.ask_to_attach(node);
                    Ok(())
                }
                _ => {
                    self.hosts[node] = Host::Down;
                    self.at(self.now + RETRY, Event::StartStandby(node));
                    Ok(())
                }
            };
        }
        let Some(request) = source.requests.front().cloned() else {
            return Ok(());
        };
        source.at_gateway = AtGateway::Rests;
        let event = match (&request, reply) {
            (_, Reply::Error(ErrorKind::Fenced)) if source.ending => {
                source.requests.clear();
                return Ok(());
            }
            (_, Reply::Error(ErrorKind::Fenced)) => return self.fenced(node),
            (_, Reply::Unreachable) => {
                self.later(node, process, RECONNECT, Timer::NextRequest);
                return Ok(());
            }
            (Action::End, _) => {
                source.requests.clear();
                return Ok(());
            }
            (Action::Commit2 { epoch, .. }, Reply::Good(_)) => Told::Committed { epoch: *epoch },
            (Action::Commit2 { epoch, .. }, _) => Told::CommitFailed { epoch: *epoch },
            (_, Reply::Good(_)) => Told::Drained,
            (_, _) => Told::DrainFailed,
        };
        source.requests.pop_front();
        let failed = matches!(event, Told::CommitFailed { .. } | Told::DrainFailed);
        self.later(
            node,
            process,
            if failed { RETRY } else { 1 },
            Timer::NextRequest,
        );
        if let Told::Committed { epoch } = &event
            && let Some(source) = self.source(node)
        {
            let (generation, epoch) = (source.generation, *epoch);
            if !self.ledger.is_committed(generation, epoch) {
                return violation!("3: the source believes that epoch {epoch} is committed");
            }
        }
        self.tell(node, event)
    }

    fn next_request(&mut self, node: Node) {
        let number = self.number();
        let repeat = self.repeat_request;
        let Some(source) = self.source(node) else {
            return;
        };
        let generation = source.generation;
        if source.at_gateway != AtGateway::Idle || generation == Generation(0) {
            return;
        }
        let input = match source.requests.front() {
            None => return,
            Some(Action::Commit2 { epoch, standby }) => Input::Commit {
                generation,
                epoch: *epoch,
                standby: Some(standby.clone()),
            },
            Some(Action::End) => Input::Detach { generation },
            Some(_) => Input::DrainToSync { generation },
        };
        source.at_gateway = AtGateway::Waits(number);
        let process = source.process;
        let ask = Ask::Input(input);
        if repeat {
            // Its first copy comes late, and nobody waits for that one any more.
            self.repeat_request = false;
            let late = self.now + self.random.random_range(1_000..120_000);
            let (from, to, incarnation) = (node, GATEWAY, self.incarnation);
            let message = Message::Ask {
                number: 0,
                ask: ask.clone(),
            };
            let arrive = Event::Arrive {
                from,
                to,
                process,
                incarnation,
                message,
            };
            self.at(late, arrive);
        }
        self.send(node, GATEWAY, process, Message::Ask { number, ask });
    }

    fn sealed(&mut self, node: Node, reply: Reply) -> Result<(), Violation> {
        let again = self.makes(Planted::CaptureAgain);
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        source.capture = None;
        if let Reply::Error(ErrorKind::Fenced) = reply {
            return self.fenced(node);
        }
        let process = source.process;
        // The pages leave the tracker also if there is no epoch for them.
        let (ranges, data) = source.vm.memory.take_dirty();
        let hash = source.vm.memory.hash();
        source.vm.stopped = false;
        self.later(node, process, 20, Timer::Guest);
        let Reply::Sealed(epoch) = reply else {
            self.trace.reach("capture failed");
            if again {
                let Some(source) = self.source(node) else {
                    return Ok(());
                };
                source.vm.stopped = true;
                source.capture = Some(Capture::Stopping);
                return self.seal_if_stopped(node);
            }
            return self.tell(node, Told::CaptureFailed);
        };
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let stamp = stamp_of(source.generation);
        let packets = std::mem::take(&mut source.output);
        source.held.push_back((epoch, packets));
        let mut device = hash.to_le_bytes().to_vec();
        device.extend_from_slice(&epoch.0.to_le_bytes());
        source.captured = Some(frames(stamp, epoch, &ranges, &data, Bytes::from(device)));
        self.tell(node, Told::Captured { epoch })?;
        if self.makes(Planted::CommitWithoutAck) {
            self.tell(node, Told::Commit1Acked { epoch })?;
        }
        Ok(())
    }

    fn pressure(&mut self, node: Node) -> Result<(), Violation> {
        self.trace.reach("pressure");
        self.fenced_or_lost(node)?;
        if let Some(source) = self.source(node) {
            source.pressed = true;
        }
        self.tell(node, Told::CheckpointDue)?;
        let number = self.number();
        if let Some(source) = self.source(node)
            && source.machine.capturing()
            && std::mem::take(&mut source.pressed)
        {
            let (process, ask) = (source.process, Ask::Relieve(source.generation));
            self.send(node, GATEWAY, process, Message::Ask { number, ask });
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

    fn standby_lost(&mut self, node: Node) -> Result<(), Violation> {
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

    fn carry_out(&mut self, node: Node, action: Action) -> Result<(), Violation> {
        let number = self.number();
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        let process = source.process;
        match action {
            Action::CopyBase => {
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
                self.release(node, None)?;
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

    fn say(&mut self, node: Node, kind: Kind, epoch: Epoch, payload: Bytes) {
        if let Some(source) = self.source(node)
            && let Some(link) = source.link
        {
            let frame = Frame::new(kind, stamp_of(source.generation), epoch, payload);
            self.send_frame(node, link, &frame);
        }
    }

    /// Sends a frame to the other end of a link.
    pub fn send_frame(&mut self, node: Node, link: u32, frame: &Frame) {
        let Some(ends) = self.links.get(&link).filter(|link| !link.broken) else {
            return;
        };
        let (to, process) = if ends.source.0 == node {
            ends.standby
        } else {
            ends.source
        };
        let mut wire = BytesMut::with_capacity(HEADER_BYTES + frame.payload.len());
        wire.extend_from_slice(&frame.header());
        wire.extend_from_slice(&frame.payload);
        if self.damage && frame.kind != Kind::Heartbeat {
            self.damage = false;
            let at = self.random.random_range(0..wire.len());
            wire[at] ^= 1 << self.random.random_range(0..8);
            self.trace.note(
                self.now,
                format_args!("a frame is damaged: {:?}", frame.kind),
            );
        }
        let bytes = wire.freeze();
        self.send(node, to, process, Message::Frame { link, bytes });
    }

    /// Closes the link of a source.
    pub fn close_link_of(&mut self, node: Node) {
        if let Some(source) = self.source(node)
            && let Some(link) = source.link.take()
        {
            self.close(node, link);
        }
    }

    /// Closes a link: the other end hears of it.
    pub fn close(&mut self, node: Node, link: u32) {
        let Some(ends) = self.links.get(&link) else {
            return;
        };
        let (to, process) = if ends.source.0 == node {
            ends.standby
        } else {
            ends.source
        };
        if !ends.broken {
            self.send(node, to, process, Message::Closed { link });
        }
    }

    fn seek(&mut self, node: Node) {
        let link = self.fresh_link();
        let other = A + B - node;
        let to = self.process_of(other);
        let Some(source) = self.source(node) else {
            return;
        };
        let wanted = source.seeking
            && source.link.is_none()
            && source.greeted.is_none()
            && *source.machine.phase() == Phase::Unprotected;
        if !wanted {
            return;
        }
        let process = source.process;
        let Some(to) = to else {
            self.later(node, process, SEEK_AGAIN, Timer::Seek);
            return;
        };
        source.greeted = Some(link);
        let stamp = stamp_of(source.generation);
        self.links.insert(
            link,
            Link {
                source: (node, process),
                standby: (other, to),
                broken: false,
            },
        );
        self.send(node, other, to, Message::Hello { link, stamp });
        // Nobody answers a greeting that is lost.
        self.later(node, process, 200_000, Timer::Heartbeat(link));
    }

    fn joined(&mut self, node: Node, link: u32, standby: String) -> Result<(), Violation> {
        let now = self.now;
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.greeted != Some(link) || source.link.is_some() {
            self.close(node, link);
            return Ok(());
        }
        source.greeted = None;
        source.seeking = false;
        source.link = Some(link);
        source.last_heard = now;
        let process = source.process;
        let beat = self.suspicion / 4;
        self.later(node, process, beat, Timer::Heartbeat(link));
        self.tell(node, Told::StandbyJoined { standby })
    }

    fn base_piece(&mut self, node: Node, link: u32) -> Result<(), Violation> {
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.link != Some(link) || !matches!(source.machine.phase(), Phase::Filling { .. }) {
            return Ok(());
        }
        let process = source.process;
        let piece = (RAM / PAGE).div_ceil(BASE_PIECES) * PAGE;
        let from = source.base * piece;
        let to = (from + piece).min(RAM);
        let data = source.vm.memory.bytes()[from..to].to_vec();
        source.base += 1;
        let last = source.base == BASE_PIECES;
        let stamp = stamp_of(source.generation);
        for payload in page_payloads(&[(from as u64, (to - from) as u64)], &data) {
            let frame = Frame::new(Kind::BasePages, stamp, Epoch(0), payload);
            self.send_frame(node, link, &frame);
        }
        if last {
            return self.tell(node, Told::BaseSent);
        }
        self.later(node, process, 500, Timer::Base(link));
        Ok(())
    }

    fn frame_at_source(&mut self, node: Node, link: u32, wire: &Bytes) -> Result<(), Violation> {
        let now = self.now;
        let broken = self.links.get(&link).is_none_or(|link| link.broken);
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.link != Some(link) || broken {
            return Ok(());
        }
        source.last_heard = now;
        match decode(wire) {
            Some(frame) if frame.kind == Kind::Commit1Ack => {
                let epoch = frame.epoch;
                if self.makes(Planted::ReleaseOnCommit1) {
                    self.release(node, Some(epoch))?;
                }
                self.tell(node, Told::Commit1Acked { epoch })
            }
            Some(frame) if frame.kind == Kind::Heartbeat => Ok(()),
            _ => self.standby_lost(node),
        }
    }

    /// A heartbeat, and a look whether the other side gave one.
    pub fn heartbeat(&mut self, node: Node, process: Process, link: u32) -> Result<(), Violation> {
        let (now, suspicion) = (self.now, self.suspicion);
        let beat = suspicion / 4;
        let stamp;
        match &mut self.hosts[node] {
            Host::Source(source) if source.greeted == Some(link) => {
                source.greeted = None;
                self.later(node, process, 100, Timer::Seek);
                return Ok(());
            }
            Host::Source(source) if source.link == Some(link) => {
                if now - source.last_heard > suspicion {
                    self.trace.reach("standby suspected");
                    return self.standby_lost(node);
                }
                stamp = stamp_of(source.generation);
            }
            Host::Standby(standby) => match &standby.session {
                Some(session) if session.link == link && session.takeover.is_none() => {
                    if now - session.last_heard > suspicion {
                        self.trace.reach("source suspected");
                        return self.source_lost(node);
                    }
                    stamp = session.stamp;
                }
                _ => return Ok(()),
            },
            _ => return Ok(()),
        }
        self.later(node, process, beat, Timer::Heartbeat(link));
        let frame = Frame::new(Kind::Heartbeat, stamp, Epoch(0), Bytes::new());
        self.send_frame(node, link, &frame);
        Ok(())
    }

    /// The connections with the gateway are gone.
    pub fn gateway_gone(&mut self, node: Node) {
        let Some(source) = self.source(node) else {
            return;
        };
        let process = source.process;
        let watched = source.watch.take().is_some();
        if watched {
            self.later(node, process, RECONNECT, Timer::Watch);
        }
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

/// What is on every frame.
pub fn stamp_of(generation: Generation) -> FrameStamp {
    FrameStamp {
        vm: VmId::of(GROUP),
        generation,
    }
}

/// A frame from the wire, if it is one.
pub fn decode(wire: &Bytes) -> Option<Frame> {
    let mut head = [0; HEADER_BYTES];
    head.copy_from_slice(wire.get(..HEADER_BYTES)?);
    let header = Header::decode(&head).ok()?;
    header.with_payload(wire.slice(HEADER_BYTES..)).ok()
}
