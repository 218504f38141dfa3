//! What a source asks of the gateway and what comes of the answers: `gateway_task`, and the seal of `vm_task`.

use bytes::Bytes;
use coordinator::checkpoint::frames;
use coordinator::commit::{Action, Event as Told};
use nbd_server::Generation;
use nbd_server::control::api::ErrorKind;
use nbd_server::group::barriers::Input;
use rand::Rng;

use super::control::{Ask, Reply};
use super::faults::Repeat;
use super::guest::{Request, What};
use super::hosts::{AtGateway, Capture, Host};
use super::network::{DiskOutcome, GATEWAY, Message, Node, Process};
use super::queue::{Event, Timer};
use super::source_link::stamp_of;
use super::world::World;
use crate::blocks::shown;
use crate::planted::Planted;
use crate::{Violation, violation};

/// Between two attempts to reach a gateway that does not answer.
const RECONNECT: u64 = 2_000;
/// Between two attempts at what the gateway could not do.
const RETRY: u64 = 25_000;
/// How long a paused guest waits for a gateway that is just starting again.
const SEAL_PATIENCE: u64 = 30_000;
/// Between two attempts to seal.
const SEAL_AGAIN: u64 = 1_000;

impl World<'_> {
    pub(super) fn request_done(
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
    pub(super) fn seal_if_stopped(&mut self, node: Node) -> Result<(), Violation> {
        let until = self.now + SEAL_PATIENCE;
        let runs_on = self.makes(Planted::ContBeforeSeal);
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.capture != Some(Capture::Stopping) || !source.vm.requests.is_empty() {
            return Ok(());
        }
        source.patient_until = until;
        if runs_on {
            let process = source.process;
            source.vm.stopped = false;
            self.later(node, process, 10, Timer::Guest);
        }
        self.ask_to_seal(node);
        Ok(())
    }

    pub(super) fn ask_to_seal(&mut self, node: Node) {
        let (number, now) = (self.number(), self.now);
        let Some(source) = self.source(node) else {
            return;
        };
        source.capture = Some(Capture::Sealing(number));
        let process = source.process;
        let ask = Ask::Seal(source.generation, source.next_seal());
        match self.repeat {
            Some(Repeat::GivenUpSeal) => {
                self.repeat = None;
                self.arrives_late(node, process, ask);
                if let Some(source) = self.source(node) {
                    source.patient_until = now;
                }
                let reply = Reply::Unreachable;
                self.send(GATEWAY, node, process, Message::Reply { number, reply });
            }
            Some(Repeat::Seal) => {
                self.repeat = None;
                self.arrives_late(node, process, ask.clone());
                self.send(node, GATEWAY, process, Message::Ask { number, ask });
            }
            _ => self.send(node, GATEWAY, process, Message::Ask { number, ask }),
        }
    }

    /// A copy of a request whose answer nobody waits for any more.
    fn arrives_late(&mut self, node: Node, process: Process, ask: Ask) {
        let late = self.now + self.random.random_range(1_000..120_000);
        let (from, to, incarnation) = (node, GATEWAY, self.incarnation);
        let message = Message::Ask { number: 0, ask };
        let arrive = Event::Arrive {
            from,
            to,
            process,
            incarnation,
            message,
        };
        self.at(late, arrive);
    }

    pub(super) fn reply_arrives(
        &mut self,
        node: Node,
        number: u64,
        reply: Reply,
    ) -> Result<(), Violation> {
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
                Reply::Good(answer) => self.boots(node, answer.generation, answer.committed),
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
            (_, Reply::Good(answer)) => {
                source.newest = answer.committed;
                Told::Drained
            }
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

    pub(super) fn next_request(&mut self, node: Node) {
        let number = self.number();
        let Some(source) = self.source(node) else {
            return;
        };
        let generation = source.generation;
        if source.at_gateway != AtGateway::Idle || generation == Generation(0) {
            return;
        }
        let (input, repeat) = match source.requests.front() {
            None => return,
            Some(Action::Commit2 { epoch, standby }) => {
                let standby = Some(standby.clone());
                let commit = Input::Commit {
                    generation,
                    epoch: *epoch,
                    standby,
                };
                (commit, Repeat::Commit)
            }
            Some(Action::End) => (Input::Detach { generation }, Repeat::Commit),
            Some(_) => {
                let protection = Some(source.protection);
                let drain = Input::DrainToSync {
                    generation,
                    protection,
                };
                (drain, Repeat::Drain)
            }
        };
        source.at_gateway = AtGateway::Waits(number);
        let process = source.process;
        let ask = Ask::Input(input);
        if self.repeat == Some(repeat) {
            self.repeat = None;
            self.arrives_late(node, process, ask.clone());
        }
        self.send(node, GATEWAY, process, Message::Ask { number, ask });
    }

    pub(super) fn sealed(&mut self, node: Node, reply: Reply) -> Result<(), Violation> {
        let again = self.makes(Planted::CaptureAgain);
        let now = self.now;
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if matches!(reply, Reply::Unreachable) && now < source.patient_until {
            let process = source.process;
            source.capture = Some(Capture::Rests);
            self.later(node, process, SEAL_AGAIN, Timer::SealAgain);
            return Ok(());
        }
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
        source.newest = epoch;
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

    pub(super) fn pressure(&mut self, node: Node) -> Result<(), Violation> {
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
}
