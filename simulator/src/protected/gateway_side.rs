//! The gateway as the network sees it: requests of the control API and of guests, given to the real group, and answered when that answers.
//! Restated are the handlers of `control/server.rs` and what a connection does with an attachment.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use nbd_server::control::api::{ErrorKind, Event as GroupEvent};
use nbd_server::export::{Cutter, Export, IoError};
use nbd_server::group::barriers::{Gate, Input};
use nbd_server::group::{
    Answer as GroupAnswer, Clear, DiskExport, Flush, GroupError, Refusal, Sealed,
};
use nbd_server::{Epoch, Generation};
use rand::Rng;

use super::guest::{Request, What};
use super::world::{DiskOutcome, Event, GATEWAY, Message, Node, Process, World};
use crate::blocks::{CLEARED, DISKS, PLACES, Stamp, UNIT, fill, position, stamps};
use crate::planted::Planted;
use crate::poll::{Answer, poll};
use crate::{Violation, violation};

/// A request of the control API.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Anything that the committer decides.
    Input(Input),
    /// A cut.
    Seal(Generation),
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
    Busy(Generation),
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

/// What a process has attached.
pub struct Attached {
    exports: Vec<DiskExport>,
}

/// Who listens to events.
pub struct Subscription {
    from: Node,
    process: Process,
    events: Pin<Box<dyn Future<Output = bool>>>,
}

impl World<'_> {
    /// A turn of committer or applier.
    pub fn gateway_turn(&mut self) -> Result<(), Violation> {
        let Some(gateway) = &mut self.gateway else {
            return Ok(());
        };
        let commits = gateway.turn(self.now, &mut self.random);
        let error = gateway.stepped.last_error();
        self.trace.note(
            self.now,
            format_args!(
                "turn {} {}",
                if commits { "commit" } else { "apply" },
                error.unwrap_or_default()
            ),
        );
        self.after_change()
    }

    /// Something may have changed at the gateway.
    pub fn after_change(&mut self) -> Result<(), Violation> {
        if self.storage.disk.is_dead() {
            let power = self.power_next();
            return self.crash_gateway(power);
        }
        self.observe()?;
        self.answer_requests()?;
        self.answer_guests()?;
        self.tell_events();
        if self.random.random_ratio(1, 100) {
            self.ledger.check_images(&self.storage.image_stamps())?;
        }
        Ok(())
    }

    /// Looks where the group stands.
    pub fn observe(&mut self) -> Result<(), Violation> {
        let Some(gateway) = &self.gateway else {
            return Ok(());
        };
        let now = gateway.stepped.standing();
        if now != self.ledger.standing {
            self.look_again = 0;
            let (phase, gate) = (now.phase, now.gate);
            self.trace.note(
                self.now,
                format_args!(
                    "generation {} sealed {} committed {} applied {} {phase:?} {gate:?}",
                    now.generation, now.sealed, now.committed, now.applied
                ),
            );
            if now.committed > self.ledger.standing.committed {
                self.trace.reach("committed");
            }
            let cut = now.sealed > self.ledger.standing.sealed;
            self.ledger.observe(now)?;
            if cut && self.makes(Planted::ApplyBeforeRecord) {
                self.scribble_cut();
            }
        }
        Ok(())
    }

    /// A planted mistake: the cut is in the images at once.
    fn scribble_cut(&mut self) {
        let mut unit = vec![0; UNIT];
        for place in 0..PLACES {
            fill(self.ledger.live[place], place, &mut unit);
            self.storage.scribble(place, &unit);
        }
    }

    /// The process is gone, with all that it held.
    pub fn crash_gateway(&mut self, power: bool) -> Result<(), Violation> {
        if self.gateway.is_none() {
            return Ok(());
        }
        let kind = if power {
            "gateway-power"
        } else {
            "gateway-kill"
        };
        self.trace.fault(self.now, kind, format_args!(""));
        let waiting = std::mem::take(&mut self.waiting);
        self.subscriptions.clear();
        self.attached.clear();
        let pending = std::mem::take(&mut self.pending);
        self.gateway = None;
        self.forget_turn();
        if power {
            let lost = self.ledger.power_lost();
            self.storage.disk.power_loss();
            if lost || matches!(self.ledger.standing.gate, Gate::Through) {
                // A guest in sync mode may have lost what it had not flushed: it is started again.
                self.give_up_vms("its disk lost what was not flushed")?;
            }
        } else {
            self.storage.disk.process_ends();
        }
        self.incarnation += 1;
        for pending in pending {
            let number = pending.number;
            let reply = Reply::Unreachable;
            let message = Message::Reply { number, reply };
            self.send(GATEWAY, pending.from, pending.process, message);
        }
        for (from, process, request) in waiting {
            let outcome = DiskOutcome::Lost;
            self.send(GATEWAY, from, process, Message::Done { request, outcome });
        }
        // Who listens finds the stream closed; who waits for a disk finds the connection closed.
        for node in [super::world::A, super::world::B] {
            self.gateway_gone(node);
        }
        let after = self.random.random_range(500..40_000);
        self.at(self.now + after, Event::StartGateway);
        Ok(())
    }

    /// The process starts.
    pub fn start_gateway(&mut self) -> Result<(), Violation> {
        if self.gateway.is_some() {
            return Ok(());
        }
        match self.storage.start(self.now) {
            Ok(gateway) => {
                self.trace.reach("gateway restart");
                self.gateway = Some(gateway);
                self.observe()?;
                self.ledger.check_images(&self.storage.image_stamps())
            }
            Err(error) if self.storage.disk.is_dead() || self.storage.disk.figures().1 > 0 => {
                self.trace
                    .note(self.now, format_args!("the group does not open: {error:?}"));
                let power = self.storage.disk.is_dead() && self.power_next();
                self.storage.disk.process_ends();
                self.storage.disk.heal();
                if power && !matches!(self.ledger.standing.gate, Gate::Through) {
                    self.ledger.power_lost();
                    self.storage.disk.power_loss();
                }
                self.at(self.now + 3_000, Event::StartGateway);
                Ok(())
            }
            Err(error) => violation!("the group does not open: {error:?}"),
        }
    }

    /// A crash between two changes is of the power, or only of the process.
    pub fn power_next(&mut self) -> bool {
        self.random.random_bool(0.5) && !self.storage_failed
    }

    /// Something arrives at the gateway.
    pub fn gateway_receives(
        &mut self,
        from: Node,
        process: Process,
        incarnation: u32,
        message: Message,
    ) -> Result<(), Violation> {
        let gone = self.gateway.is_none();
        match message {
            // A connection that a living process makes anew reaches whatever gateway there is.
            Message::Ask { number, .. } if gone || incarnation != self.incarnation => {
                let reply = Reply::Unreachable;
                self.send(GATEWAY, from, process, Message::Reply { number, reply });
                Ok(())
            }
            Message::Disk { request } if gone || incarnation != self.incarnation => {
                let outcome = DiskOutcome::Lost;
                self.send(GATEWAY, from, process, Message::Done { request, outcome });
                Ok(())
            }
            Message::Ask { number, ask } => {
                self.poke();
                self.asked(from, process, number, ask)?;
                self.after_change()
            }
            Message::Disk { request } => {
                self.poke();
                self.serve(from, process, request)?;
                self.after_change()
            }
            _ => Ok(()),
        }
    }

    fn poke(&mut self) {
        if let Some(gateway) = &mut self.gateway {
            gateway.poke(self.now, &mut self.random);
        }
    }

    fn asked(
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
        let wait = match ask {
            Ask::Input(input) => Wait::Answer(Box::pin(async move { group.request(input).await })),
            Ask::Seal(generation) => Wait::Busy(generation),
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

    fn answer_requests(&mut self) -> Result<(), Violation> {
        let mut left = Vec::new();
        for mut pending in std::mem::take(&mut self.pending) {
            if let Wait::Busy(generation) = pending.wait {
                match self.seal(pending.process, generation)? {
                    None => {
                        left.push(pending);
                        continue;
                    }
                    Some(Ok(safe)) => pending.wait = Wait::Safe(safe),
                    Some(Err(kind)) => {
                        self.reply(&pending, Reply::Error(kind));
                        continue;
                    }
                }
            }
            let reply = match &mut pending.wait {
                Wait::Busy(_) => None,
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

    /// Cuts; none while the group is busy.
    fn seal(
        &mut self,
        process: Process,
        generation: Generation,
    ) -> Result<Option<Result<Future_<Sealed>, ErrorKind>>, Violation> {
        let Some(gateway) = &self.gateway else {
            return Ok(None);
        };
        let group = Arc::clone(gateway.stepped.group());
        let sealed = match group.try_seal(generation, None) {
            Err(GroupError::Refused(Refusal::Busy)) => return Ok(None),
            Err(error) => return Ok(Some(Err(error.kind()))),
            Ok(sealed) => sealed,
        };
        if generation != self.ledger.standing.generation {
            return violation!("6: generation {generation} seals in a later one");
        }
        self.observe()?;
        self.poke();
        let memory = [super::world::A, super::world::B]
            .into_iter()
            .find_map(|node| {
                self.source(node)
                    .filter(|source| source.process == process)
                    .map(|source| (source.vm.memory.table(), source.vm.memory.hash()))
            });
        if let Some((table, hash)) = memory {
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
        Ok(Some(Ok(safe)))
    }

    fn tell_events(&mut self) {
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

    /// Attaches a process in the name `id`; nothing if it is not let in.
    pub fn attach(&mut self, process: Process, id: &str) -> Option<ErrorKind> {
        let gateway = self.gateway.as_ref()?;
        let group = gateway.stepped.group();
        let mut exports = Vec::new();
        for disk in 0..DISKS {
            match group.attach(&format!("disk{disk}"), Some(id), Cutter::inert())? {
                Ok(export) => exports.push(export),
                Err(refusal) => return Some(GroupError::from(refusal).kind()),
            }
        }
        self.attached.insert(process, Attached { exports });
        None
    }

    /// Reads all that an attached process sees.
    pub fn read_all(&self, process: Process) -> Result<Vec<[Option<Stamp>; 2]>, IoError> {
        let attached = self.attached.get(&process).ok_or(IoError::Shutdown)?;
        let mut unit = vec![0; UNIT];
        let disk = self.storage.disk.clone();
        (0..PLACES)
            .map(|place| {
                let (disk_number, offset) = position(place);
                disk.undisturbed(|| attached.exports[disk_number].read(offset, &mut unit))?;
                Ok(stamps(place, &unit))
            })
            .collect()
    }

    /// A guest's request.
    fn serve(&mut self, from: Node, process: Process, request: Request) -> Result<(), Violation> {
        if !self.attached.contains_key(&process) {
            let id = self.source(from).map(|source| source.id.clone());
            if let Some(id) = id {
                self.attach(process, &id);
            }
        }
        self.try_request(from, process, request)
    }

    fn try_request(
        &mut self,
        from: Node,
        process: Process,
        request: Request,
    ) -> Result<(), Violation> {
        match self.attempt(from, process, &request)? {
            // A process that is dead answers nothing.
            Some(outcome) if !self.storage.disk.is_dead() => {
                self.send(GATEWAY, from, process, Message::Done { request, outcome });
            }
            _ => self.waiting.push((from, process, request)),
        }
        Ok(())
    }

    /// None if it has to wait.
    fn attempt(
        &mut self,
        from: Node,
        process: Process,
        request: &Request,
    ) -> Result<Option<DiskOutcome>, Violation> {
        let (disk, offset) = position(request.place);
        let len = request.count * UNIT;
        let Some(attached) = self.attached.get(&process) else {
            return Ok(Some(DiskOutcome::Lost));
        };
        let export = &attached.exports[disk];
        let outcome = match request.what {
            What::Read => {
                let mut data = vec![0; len];
                export.read(offset, &mut data).map(|()| {
                    let units = data.chunks_exact(UNIT).zip(request.place..);
                    Some(units.map(|(unit, place)| stamps(place, unit)).collect())
                })
            }
            What::Flush => {
                let mut done = true;
                let mut failed = None;
                for export in &attached.exports {
                    match export.flush_now() {
                        Ok(Flush::Done) => {}
                        // A group that commits by itself has no source, and no guest here.
                        Ok(Flush::Waits | Flush::Commits(_)) => done = false,
                        Err(error) => failed = Some(error),
                    }
                }
                if done && failed.is_none() && self.ledger.standing.gate == Gate::Through {
                    self.ledger.images_synced();
                }
                match failed {
                    Some(error) => Err(error),
                    None => Ok(done.then(Vec::new)),
                }
            }
            What::Write { stamp } => {
                let wrote = if stamp & CLEARED != 0 {
                    export.clear_now(offset, len as u64, Clear::Hole)
                } else {
                    let mut data = vec![0; len];
                    for (unit, place) in data.chunks_exact_mut(UNIT).zip(request.place..) {
                        fill(stamp, place, unit);
                    }
                    export.write_now(offset, &data)
                };
                let through = self.ledger.standing.gate == Gate::Through;
                if through && (self.storage.disk.is_dead() || wrote == Err(IoError::Io)) {
                    for place in request.place..request.place + request.count {
                        self.ledger.may_have_written(place, stamp);
                    }
                }
                if wrote == Ok(true) {
                    self.wrote(from, process, request, stamp)?;
                }
                wrote.map(|done| done.then(Vec::new))
            }
        };
        Ok(match outcome {
            Ok(done) => done.map(DiskOutcome::Done),
            Err(IoError::Shutdown) if self.makes(Planted::NoFenceOnWrites) => {
                let owner = self.ledger.standing.owner.clone().unwrap_or_default();
                self.attach(process, &owner);
                Some(DiskOutcome::Lost)
            }
            Err(IoError::Io) => Some(DiskOutcome::Failed),
            Err(_) => {
                // The connection was cut.
                self.attached.remove(&process);
                Some(DiskOutcome::Lost)
            }
        })
    }

    fn wrote(
        &mut self,
        from: Node,
        process: Process,
        request: &Request,
        stamp: Stamp,
    ) -> Result<(), Violation> {
        let current = self.ledger.standing.generation;
        let through = self.ledger.standing.gate == Gate::Through;
        let generation = self
            .source(from)
            .filter(|source| source.process == process)
            .map(|source| source.generation);
        // A request of a process that has died meanwhile was its owner's all the same.
        if generation.is_some_and(|generation| generation != current) {
            return violation!("6: a write of generation {generation:?} is let in in {current}");
        }
        for place in request.place..request.place + request.count {
            self.ledger.wrote(place, stamp, through);
        }
        Ok(())
    }

    /// Those who wait look again when the group has changed, and now and then, as memory may be free.
    fn answer_guests(&mut self) -> Result<(), Violation> {
        if self.waiting.is_empty() || self.now < self.look_again {
            return Ok(());
        }
        self.look_again = self.now + 2_000;
        for (from, process, request) in std::mem::take(&mut self.waiting) {
            self.try_request(from, process, request)?;
        }
        Ok(())
    }
}
