//! The control API as the network sees it: requests given to the real group, and answered when that answers. Restated are the handlers
//! of `control/server.rs`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use nbd_server::control::api::{ErrorKind, Event as GroupEvent};
use nbd_server::group::barriers::{Input, SealNumber};
use nbd_server::group::{Answer as GroupAnswer, GroupError, Refusal, Sealed};
use nbd_server::{Epoch, Generation};

use super::hosts::Capture;
use super::network::{A, B, GATEWAY, Message, Node, Process};
use super::world::World;
use crate::blocks::PLACES;
use crate::planted::Planted;
use crate::poll::{Answer, poll};
use crate::{Violation, violation};

/// A request of the control API.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Anything that the committer decides.
    Input(Input),
    /// A cut.
    Seal(Generation, SealNumber),
    /// Parks a standby and lets it attach.
    Park(String),
    /// Lets waiting writes in.
    Relieve(Generation),
    /// Subscribes to events.
    Watch(Generation),
}

/// An answer.
#[derive(Debug, Clone)]
pub enum Reply {
    /// Where the group stands.
    Good(GroupAnswer),
    /// The cut.
    Sealed(Epoch),
    /// Done.
    Done,
    /// An error of the gateway.
    Error(ErrorKind),
    /// No answer.
    Unreachable,
}

type Future_<T> = Pin<Box<dyn Future<Output = Result<T, GroupError>>>>;

/// What a request waits for.
pub enum Wait {
    /// The committer.
    Answer(Future_<GroupAnswer>),
    /// The group, to be less busy.
    Busy(Generation, SealNumber),
    /// What the group holds, to be committed before the first cut.
    Held(Future_<()>, Generation, SealNumber),
    /// The first cut, to be recorded.
    Safe(Future_<Sealed>),
}

/// A request that is being carried out.
pub struct Pending {
    from: Node,
    process: Process,
    number: u64,
    wait: Wait,
}

/// Who listens to events.
pub struct Subscription {
    from: Node,
    process: Process,
    events: Pin<Box<dyn Future<Output = bool>>>,
}

impl World<'_> {
    /// A request as the gateway takes it; a planted mistake takes away what it belongs to.
    fn as_taken(&self, ask: Ask) -> Ask {
        if !self.makes(Planted::Unnumbered) {
            return ask;
        }
        match ask {
            Ask::Seal(generation, number) => {
                let protection = None;
                Ask::Seal(
                    generation,
                    SealNumber {
                        protection,
                        ..number
                    },
                )
            }
            Ask::Input(Input::DrainToSync { generation, .. }) => {
                let protection = None;
                Ask::Input(Input::DrainToSync {
                    generation,
                    protection,
                })
            }
            ask => ask,
        }
    }

    /// A request of the control API arrives.
    pub(super) fn asked(
        &mut self,
        from: Node,
        process: Process,
        number: u64,
        ask: Ask,
    ) -> Result<(), Violation> {
        let Some(gateway) = &self.gateway else {
            return Ok(());
        };
        let group = Arc::clone(gateway.stepped.group());
        self.trace
            .note(self.now, format_args!("host {from} asks {ask:?}"));
        let wait = match self.as_taken(ask) {
            Ask::Input(input) => Wait::Answer(Box::pin(async move { group.request(input).await })),
            Ask::Seal(generation, number) => Wait::Busy(generation, number),
            Ask::Park(standby) => {
                let parked = group.park(&standby);
                let reply = match parked {
                    Ok(()) => Reply::Done,
                    Err(error) => Reply::Error(error.kind()),
                };
                if matches!(reply, Reply::Done) {
                    self.attach(process, &standby);
                }
                self.send(GATEWAY, from, process, Message::Reply { number, reply });
                return Ok(());
            }
            Ask::Relieve(generation) => {
                let reply = match group.relieve(generation) {
                    Ok(_) => Reply::Done,
                    Err(error) => Reply::Error(error.kind()),
                };
                self.send(GATEWAY, from, process, Message::Reply { number, reply });
                return Ok(());
            }
            Ask::Watch(generation) => {
                let reply = match group.subscribe(generation) {
                    Ok(mut events) => {
                        let events = Box::pin(async move {
                            loop {
                                match events.recv().await {
                                    Ok(GroupEvent::Pressure { .. }) => return false,
                                    Ok(GroupEvent::Fenced { .. }) | Err(_) => return true,
                                    Ok(_) => {}
                                }
                            }
                        });
                        self.subscriptions.retain(|other| other.process != process);
                        self.subscriptions.push(Subscription {
                            from,
                            process,
                            events,
                        });
                        Reply::Done
                    }
                    Err(error) => Reply::Error(error.kind()),
                };
                self.send(GATEWAY, from, process, Message::Reply { number, reply });
                return Ok(());
            }
        };
        self.pending.push(Pending {
            from,
            process,
            number,
            wait,
        });
        Ok(())
    }

    pub(super) fn answer_requests(&mut self) -> Result<(), Violation> {
        let mut left = Vec::new();
        for mut pending in std::mem::take(&mut self.pending) {
            if let Wait::Busy(generation, number) = pending.wait {
                match self.seal(&pending, generation, number)? {
                    Ok(wait) => pending.wait = wait,
                    Err(kind) => {
                        self.reply(&pending, Reply::Error(kind));
                        continue;
                    }
                }
            }
            let reply = match &mut pending.wait {
                Wait::Busy(..) => None,
                Wait::Held(future, generation, number) => match poll(future) {
                    Answer::Pending => None,
                    Answer::Ready(Ok(())) => {
                        pending.wait = Wait::Busy(*generation, *number);
                        self.poke();
                        None
                    }
                    Answer::Ready(Err(error)) => Some(Reply::Error(error.kind())),
                },
                Wait::Answer(future) => match poll(future) {
                    Answer::Pending => None,
                    Answer::Ready(Ok(answer)) => Some(Reply::Good(answer)),
                    Answer::Ready(Err(error)) => Some(Reply::Error(error.kind())),
                },
                Wait::Safe(future) => match poll(future) {
                    Answer::Pending => None,
                    Answer::Ready(Ok(sealed)) => Some(Reply::Sealed(sealed.epoch)),
                    Answer::Ready(Err(error)) => Some(Reply::Error(error.kind())),
                },
            };
            match reply {
                Some(reply) => self.reply(&pending, reply),
                None => left.push(pending),
            }
        }
        left.append(&mut self.pending);
        self.pending = left;
        Ok(())
    }

    /// The gateway is gone before it has answered.
    pub(super) fn unanswered(&mut self, pending: Pending) {
        let number = pending.number;
        let reply = Reply::Unreachable;
        let message = Message::Reply { number, reply };
        self.send(GATEWAY, pending.from, pending.process, message);
    }

    fn reply(&mut self, pending: &Pending, reply: Reply) {
        let number = pending.number;
        let lost = std::mem::take(&mut self.lose_answer);
        self.trace.note(
            self.now,
            format_args!(
                "host {} is told {reply:?}{}",
                pending.from,
                if lost { ", lost" } else { "" }
            ),
        );
        let reply = if lost { Reply::Unreachable } else { reply };
        self.send(
            GATEWAY,
            pending.from,
            pending.process,
            Message::Reply { number, reply },
        );
    }

    /// Cuts, if the group is ready for that; what there is to wait for.
    fn seal(
        &mut self,
        pending: &Pending,
        generation: Generation,
        number: SealNumber,
    ) -> Result<Result<Wait, ErrorKind>, Violation> {
        let busy = Wait::Busy(generation, number);
        let Some(gateway) = &self.gateway else {
            return Ok(Ok(busy));
        };
        let group = Arc::clone(gateway.stepped.group());
        let sealed = match group.try_seal(generation, Some(number)) {
            Err(GroupError::Refused(Refusal::Busy)) => return Ok(Ok(busy)),
            Err(GroupError::Refused(Refusal::Unsettled)) => {
                self.trace.reach("first seal with writes held");
                self.poke();
                let committed = Box::pin(async move { group.commit_held().await });
                return Ok(Ok(Wait::Held(committed, generation, number)));
            }
            Err(error) => return Ok(Err(error.kind())),
            Ok(sealed) => sealed,
        };
        if generation != self.ledger.standing.generation {
            return violation!("6: generation {generation} seals in a later one");
        }
        self.observe()?;
        self.poke();
        // A copy that nobody waits for is of no paused guest.
        let paused = [A, B].into_iter().find_map(|node| {
            let source = self.source(node)?;
            let waits = source.process == pending.process
                && source.capture == Some(Capture::Sealing(pending.number));
            waits.then(|| (source.vm.memory.table(), source.vm.memory.hash()))
        });
        if let Some((table, hash)) = paused {
            if table != self.ledger.live {
                let differs: Vec<_> = (0..PLACES)
                    .filter(|place| table[*place] != self.ledger.live[*place])
                    .map(|place| (place, table[place], self.ledger.live[place]))
                    .collect();
                return violation!(
                    "1: the cut of epoch {} is not one instant: unit, memory, disk {differs:?}",
                    sealed.epoch
                );
            }
            self.ledger.captured(generation, sealed.epoch, hash);
        }
        let safe = Box::pin(async move { group.make_safe(generation, sealed).await });
        Ok(Ok(Wait::Safe(safe)))
    }

    pub(super) fn tell_events(&mut self) {
        for mut subscription in std::mem::take(&mut self.subscriptions) {
            match poll(&mut subscription.events) {
                Answer::Pending => self.subscriptions.push(subscription),
                Answer::Ready(fenced) => {
                    let message = if fenced {
                        Message::Fenced
                    } else {
                        Message::Pressure
                    };
                    self.send(GATEWAY, subscription.from, subscription.process, message);
                }
            }
        }
    }
}
