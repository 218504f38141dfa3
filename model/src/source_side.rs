//! What the loop of a source does around its machine: `source_loop`, `vm_task`, `gateway_task`, `link` and `taken_over` of
//! the coordinator, in small steps. It decides nothing that the machine decides.

use coordinator::commit::{Action, Event, Phase};
use nbd_server::group::barriers::{Input, Phase as GroupPhase, Protection, SealNumber};
use nbd_server::{Epoch, Generation};

use crate::channel::{Checkpoint, Frame, Ram};
use crate::gateway::{Course, No, Running, Write};
use crate::history::History;
use crate::host::{Answer, Host, Request, Side, SourceProcess};
use crate::mutation::Mutation;
use crate::rules::Rule;
use crate::world::{Protocol, World};

/// None if the step can't be taken now.
type Taken = Option<()>;

impl World {
    /// The guest makes a step: memory, disk and network.
    pub(crate) fn run_guest(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let source = self.source(side)?;
        let (generation, capturing) = (source.generation, source.capturing);
        let vm = source.vm.as_ref()?;
        let next = vm.memory.then(vm.run);
        if capturing || self.steps_left == 0 {
            return None;
        }
        let (gateway, mut judge) = self.at_gateway(protocol);
        match gateway.write(next, generation, &mut judge) {
            Write::Waits => return None,
            Write::Done | Write::Refused => {}
        }
        self.steps_left -= 1;
        let source = self.source_mut(side)?;
        source.vm.as_mut()?.memory = next;
        if source.holds_output() {
            source.output.open = Some(next);
        } else {
            self.packet_leaves(generation, next);
        }
        Some(())
    }

    /// The gateway learns that the guest wants to write after a takeover.
    pub(crate) fn guest_waits(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let source = self.source(side)?;
        source.vm.as_ref()?;
        let generation = source.generation;
        if self.steps_left == 0 || !self.gateway.wants_to_know_of_writes(generation) {
            return None;
        }
        let (gateway, mut judge) = self.at_gateway(protocol);
        gateway
            .ask(Input::WriteWaits, None, Course::Good, &mut judge)
            .ok()
            .map(|_| ())
    }

    /// The interval has passed.
    pub(crate) fn checkpoint_due(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let running = self.gateway.running.as_ref();
        let newest = running.map_or(self.gateway.log.committed, |running| {
            running.barriers.sealed()
        });
        if newest.0 >= protocol.bounds.epochs {
            return None;
        }
        self.tell_source(side, Event::CheckpointDue)
    }

    /// The guest is stopped: the gateway seals, memory is captured, the guest runs on.
    pub(crate) fn capture(&mut self, protocol: &Protocol, side: Side, course: Course) -> Taken {
        let source = self.source(side)?;
        if !source.capturing {
            return None;
        }
        let (generation, number) = (source.generation, source.next_seal());
        let (gateway, mut judge) = self.at_gateway(protocol);
        match gateway.seal(generation, number, course, &mut judge) {
            Ok(epoch) => self.captured(protocol, side, epoch),
            Err(No::NeverSo | No::Busy) => None,
            // It is asked again, and given up only while it stays silent.
            Err(No::Silent) => Some(()),
            Err(No::Fenced) => self.tell_source(side, Event::Fenced),
            Err(No::Full | No::Refused) => self.capture_failed(protocol, side),
        }
    }

    /// The seal did not happen, or its answer is lost.
    pub(crate) fn capture_failed(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let source = self.source_mut(side)?;
        // The pages were taken out of the tracker all the same.
        source.take_dirty()?;
        if protocol.makes(Mutation::CaptureAgain) {
            return Some(());
        }
        source.capturing = false;
        self.tell_source(side, Event::CaptureFailed)
    }

    fn captured(&mut self, protocol: &Protocol, side: Side, epoch: Epoch) -> Taken {
        let source = self.source_mut(side)?;
        source.capturing = false;
        source.newest = epoch;
        let (base, memory) = source.take_dirty()?;
        source.captured = Some(Checkpoint {
            epoch,
            base,
            memory,
            damaged: false,
        });
        source.output.seal(epoch);
        self.tell_source(side, Event::Captured { epoch })?;
        if protocol.makes(Mutation::CommitWithoutAck) {
            self.tell_source(side, Event::Commit1Acked { epoch });
        }
        Some(())
    }

    /// The first copy is sent.
    pub(crate) fn base_sent(&mut self, side: Side) -> Taken {
        let source = self.source_mut(side)?;
        let copying = source.copying.take()?;
        source.vm.as_mut()?.tracked = Ram::Base(copying);
        if source.link != Some(copying) {
            return Some(());
        }
        self.send(copying, Frame::Base);
        self.tell_source(side, Event::BaseSent)
    }

    /// A standby says Welcome.
    pub(crate) fn join(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let source = self.source(side)?;
        let generation = source.generation;
        let standby = self.standby(side.other())?;
        let free = standby.session.is_none() && standby.takeover.is_none();
        if !source.seeking || !free {
            return None;
        }
        let id = standby.id.clone();
        let (gateway, mut judge) = self.at_gateway(protocol);
        gateway.park(&id, &mut judge).ok()?;
        let channel = self.open_channel();
        let standby = self.standby_mut(side.other())?;
        standby.session = Some(channel);
        standby.stamp = generation;
        standby
            .machine
            .step(coordinator::standby::Event::SourceJoined);
        let source = self.source_mut(side)?;
        source.seeking = false;
        source.link = Some(channel);
        self.tell_source(side, Event::StandbyJoined { standby: id })
    }

    /// The request in front reaches the gateway.
    pub(crate) fn ask(&mut self, protocol: &Protocol, side: Side, course: Course) -> Taken {
        let source = self.source(side)?;
        let request = source.requests.front()?.clone();
        let waits = |running: &Running| running.draining.contains(&request);
        if source.answer.is_some() || self.gateway.running.as_ref().is_some_and(waits) {
            return None;
        }
        let (gateway, mut judge) = self.at_gateway(protocol);
        let outcome = gateway.ask(request.input(), request.generation(), course, &mut judge);
        match (outcome, &request) {
            (Ok(_), Request::Drain { .. }) => {
                let running = self.gateway.running.as_mut()?;
                running.draining.insert(request);
            }
            (Ok(_), _) => self.source_mut(side)?.answer = Some(Answer::Committed),
            (Err(No::Fenced), _) => self.source_mut(side)?.answer = Some(Answer::Fenced),
            (Err(No::NeverSo), _) => return None,
            // It is asked again when the gateway is back.
            (Err(No::Silent), _) => {}
            (Err(No::Busy | No::Full | No::Refused), _) => {
                self.request_failed(side)?;
            }
        }
        Some(())
    }

    /// Answered at once: the request that follows is the same again, so a later answer would change nothing.
    fn request_failed(&mut self, side: Side) -> Taken {
        let event = match self.source_mut(side)?.requests.pop_front()? {
            Request::Commit { epoch, .. } => Event::CommitFailed { epoch },
            _ => Event::DrainFailed,
        };
        self.tell_source(side, event)
    }

    /// The gateway has drained for the source.
    pub(crate) fn drained(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let source = self.source(side)?;
        let request = source.requests.front()?.clone();
        let running = self.gateway.running.as_mut()?;
        let at_work = matches!(
            running.barriers.phase(),
            GroupPhase::Draining { .. } | GroupPhase::Backlog
        );
        if at_work || !running.draining.remove(&request) {
            return None;
        }
        let (gateway, mut judge) = self.at_gateway(protocol);
        let again = gateway.ask(
            request.input(),
            request.generation(),
            Course::Good,
            &mut judge,
        );
        match again {
            Ok((_, epoch)) => self.source_mut(side)?.answer = Some(Answer::Drained(epoch)),
            Err(No::Fenced) => self.source_mut(side)?.answer = Some(Answer::Fenced),
            Err(_) => return self.request_failed(side),
        }
        Some(())
    }

    /// The gateway's answer arrives.
    pub(crate) fn answered(&mut self, side: Side) -> Taken {
        let source = self.source_mut(side)?;
        let answer = source.answer.take()?;
        let event = match (source.requests.pop_front()?, answer) {
            (_, Answer::Fenced) => Event::Fenced,
            (Request::Commit { epoch, .. }, _) => Event::Committed { epoch },
            (request, answer) => {
                if let (Some(protection), Answer::Drained(epoch)) = (request.protection(), answer) {
                    source.newest = epoch;
                    source.over = protection;
                }
                Event::Drained
            }
        };
        self.tell_source(side, event)
    }

    /// The source's watch at the gateway says that the generation is over.
    pub(crate) fn hears_of_fence(&mut self, side: Side) -> Taken {
        let generation = self.source(side)?.generation;
        let current = self.gateway.running.as_ref()?.barriers.generation();
        if generation == current {
            return None;
        }
        self.tell_source(side, Event::Fenced)
    }

    /// An acknowledgement arrives at the source.
    pub(crate) fn source_receives(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let link = self.source(side)?.link?;
        let epoch = self.channel_mut(link)?.to_source.pop_front()?;
        if protocol.makes(Mutation::ReleaseOnCommit1) {
            self.release(side, epoch);
        }
        self.tell_source(side, Event::Commit1Acked { epoch })
    }

    /// The source finds its channel dead.
    pub(crate) fn source_loses(&mut self, protocol: &Protocol, side: Side) -> Taken {
        let link = self.source(side)?.link?;
        let channel = self.channel_mut(link)?;
        if channel.standby_open && !channel.broken {
            return None;
        }
        if protocol.makes(Mutation::ReleaseOnStandbyLoss) {
            self.release_all(side);
        }
        self.tell_source(side, Event::StandbyLost)
    }

    /// Feeds an event to the machine of the source and carries out what it says.
    pub(crate) fn tell_source(&mut self, side: Side, event: Event) -> Taken {
        let source = self.source_mut(side)?;
        let actions = source.machine.step(event);
        for action in actions {
            self.carry_out(side, action);
        }
        // The process ends; its host is free.
        if *self.source(side)?.machine.phase() == Phase::Over {
            self.close_link(side);
            *self.host_mut(side) = Host::Down;
        }
        Some(())
    }

    fn carry_out(&mut self, side: Side, action: Action) -> Taken {
        let source = self.source_mut(side)?;
        let generation = source.generation;
        match action {
            Action::CopyBase => {
                source.protection = Protection(source.protection.0 + 1);
                source.copying = source.link;
            }
            Action::Capture => source.capturing = true,
            // A switchover is not modelled.
            Action::CaptureLast | Action::RunOn => {}
            Action::SendCheckpoint { .. } => {
                let (link, checkpoint) = (source.link, source.captured.take());
                self.send(link?, Frame::Checkpoint(checkpoint?));
            }
            Action::Commit2 { epoch, standby } => source.requests.push_back(Request::Commit {
                generation,
                epoch,
                standby,
            }),
            // What the gate does follows from the phase: `holds_output`.
            Action::HoldOutput => {}
            Action::PassOutput => {
                self.release_all(side);
            }
            Action::ReleaseOutput { epoch } => {
                self.release(side, epoch);
            }
            Action::Commit3 { epoch } => {
                let link = source.link;
                self.send(link?, Frame::Commit3(epoch));
            }
            Action::DropStandby => {
                source.captured = None;
                self.close_link(side);
            }
            Action::DrainToSync => source.requests.push_back(Request::Drain {
                generation,
                protection: source.protection,
            }),
            Action::SeekStandby => {
                source.seeking = true;
            }
            Action::StopVm => source.vm = None,
            Action::Yield => {
                let link = source.link;
                self.send(link?, Frame::Yield);
            }
            // Only after the planned end, which is not modelled.
            Action::End => {}
        }
        Some(())
    }

    fn send(&mut self, link: u8, frame: Frame) {
        if let Some(channel) = self.channel_mut(link)
            && channel.source_open
        {
            channel.to_standby.push_back(frame);
        }
    }

    pub(crate) fn close_link(&mut self, side: Side) {
        let link = self.source_mut(side).and_then(|source| source.link.take());
        if let Some(channel) = link.and_then(|link| self.channel_mut(link)) {
            channel.source_open = false;
        }
    }

    fn release(&mut self, side: Side, epoch: Epoch) -> Taken {
        let source = self.source_mut(side)?;
        let generation = source.generation;
        let packet = source.output.release(epoch)?;
        self.held_packet_leaves(generation, packet);
        Some(())
    }

    fn release_all(&mut self, side: Side) -> Taken {
        let source = self.source_mut(side)?;
        let generation = source.generation;
        let packet = source.output.release_all()?;
        self.held_packet_leaves(generation, packet);
        Some(())
    }

    /// Invariant 5: what was held leaves only if a recovery would come to it.
    fn held_packet_leaves(&mut self, generation: Generation, packet: History) {
        if generation >= self.cold_since && !packet.begins(self.gateway.durable) {
            self.broken(Rule::OutputCommit);
        }
        self.packet_leaves(generation, packet);
    }

    /// What a VM sends that was fenced by a cold start, and has not heard of it, nobody promises to remember
    /// (docs/testing.md).
    fn packet_leaves(&mut self, generation: Generation, packet: History) {
        if generation >= self.cold_since {
            self.see(packet);
        }
    }

    /// The VM goes on here, after a takeover at `epoch`.
    pub(crate) fn becomes_source(
        &mut self,
        protocol: &Protocol,
        side: Side,
        id: String,
        (generation, epoch): (Generation, Epoch),
        ram: Ram,
    ) {
        let Ram::At(memory) = ram else {
            self.broken(Rule::Recovery);
            return;
        };
        let vm = self.run_from(memory);
        let mut source = SourceProcess::new(id, generation, epoch, protocol.bounds.in_flight, vm);
        source.seeking = protocol.bounds.protect_again;
        *self.host_mut(side) = Host::Source(Box::new(source));
    }
}

impl SourceProcess {
    /// What the next seal is called.
    pub(crate) fn next_seal(&self) -> SealNumber {
        SealNumber {
            epoch: self.newest.next(),
            protection: Some(self.protection),
        }
    }

    /// The seal that is asked for.
    pub(crate) fn seal(&self) -> Request {
        Request::Seal {
            generation: self.generation,
            number: self.next_seal(),
        }
    }

    /// The dirty pages leave the tracker: what they are a difference to, and what they lead to.
    fn take_dirty(&mut self) -> Option<(Ram, History)> {
        let vm = self.vm.as_mut()?;
        let base = std::mem::replace(&mut vm.tracked, Ram::At(vm.memory));
        Some((base, vm.memory))
    }
}
