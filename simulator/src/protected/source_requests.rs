//! What a source asks of the gateway and what comes of the answers: `gateway_task`, and the seal of `vm_task`.

use bytes::Bytes;
use coordinator::checkpoint::frames;
use coordinator::commit::{Action, Event as Told};
use nbd_server::Generation;
use nbd_server::control::api::ErrorKind;
use nbd_server::group::barriers::Input;
use rand::Rng;

use super::gateway_side::{Ask, Reply};
use super::guest::{Request, What};
use super::source_link::stamp_of;
use super::world::{
    AtGateway, Capture, DiskOutcome, Event, GATEWAY, Host, Message, Node, Timer, World,
};
use crate::blocks::shown;
use crate::planted::Planted;
use crate::{Violation, violation};

/// Between two attempts to reach a gateway that does not answer.
const RECONNECT: u64 = 2_000;
/// Between two attempts at what the gateway could not do.
const RETRY: u64 = 25_000;

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

    pub(super) fn next_request(&mut self, node: Node) {
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

    pub(super) fn sealed(&mut self, node: Node, reply: Reply) -> Result<(), Violation> {
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
