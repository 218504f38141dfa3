//! What guests ask of their disks, as a connection does it with an attachment of the real group.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;

use nbd_server::control::api::ErrorKind;
use nbd_server::export::{Cutter, Export, IoError};
use nbd_server::group::barriers::Gate;
use nbd_server::group::{Clear, DiskExport, Flush, GroupError};
use nbd_server::{Epoch, Generation};

use super::guest::{Request, What};
use super::network::{DiskOutcome, GATEWAY, Message, Node, Process};
use super::world::World;
use crate::blocks::{CLEARED, DISKS, PLACES, Stamp, UNIT, fill, position, stamps};
use crate::planted::Planted;
use crate::poll::{Answer, poll};
use crate::{Violation, violation};

/// A flush that the group commits for.
pub struct Flushing {
    from: Node,
    process: Process,
    request: Request,
    /// One for each disk.
    answers: Vec<Committing>,
    /// What was written before.
    covers: BTreeSet<(Generation, Epoch)>,
    /// The generation that it was asked in.
    generation: Generation,
}

type Committing = Pin<Box<dyn Future<Output = Result<(), IoError>>>>;

impl Flushing {
    /// The request itself.
    pub fn of(self) -> (Node, Process, Request) {
        (self.from, self.process, self.request)
    }
}

/// How far a request came.
enum Tried {
    Answered(DiskOutcome),
    Waits,
    Commits(Vec<Committing>),
}

/// What a process has attached.
pub struct Attached {
    exports: Vec<DiskExport>,
}

impl World<'_> {
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
    pub(super) fn serve(
        &mut self,
        from: Node,
        process: Process,
        request: Request,
    ) -> Result<(), Violation> {
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
            Tried::Answered(outcome) if !self.storage.disk.is_dead() => {
                self.send(GATEWAY, from, process, Message::Done { request, outcome });
            }
            Tried::Answered(_) | Tried::Waits => self.waiting.push((from, process, request)),
            Tried::Commits(answers) => self.flushing.push(Flushing {
                from,
                process,
                request,
                answers,
                covers: self.ledger.uncommitted(),
                generation: self.ledger.standing.generation,
            }),
        }
        Ok(())
    }

    /// What a flush covers is committed when it is answered.
    pub(super) fn answer_flushes(&mut self) -> Result<(), Violation> {
        for mut flushing in std::mem::take(&mut self.flushing) {
            let mut failed = None;
            flushing.answers.retain_mut(|answer| match poll(answer) {
                Answer::Pending => true,
                Answer::Ready(outcome) => {
                    failed = failed.or(outcome.err());
                    false
                }
            });
            let outcome = match failed {
                None if !flushing.answers.is_empty() => {
                    self.flushing.push(flushing);
                    continue;
                }
                // As `DiskExport::flush` looks again.
                None if flushing.generation != self.ledger.standing.generation => DiskOutcome::Lost,
                None => {
                    let mut covers = flushing.covers.iter();
                    if let Some((_, epoch)) = covers
                        .find(|(generation, epoch)| !self.ledger.is_committed(*generation, *epoch))
                    {
                        return violation!(
                            "3: a flush is answered that covers epoch {epoch}, and it is not committed"
                        );
                    }
                    self.trace.reach("flush committed");
                    DiskOutcome::Done(Vec::new())
                }
                Some(IoError::Io) => DiskOutcome::Failed,
                Some(_) => {
                    self.attached.remove(&flushing.process);
                    DiskOutcome::Lost
                }
            };
            let (from, process, request) = flushing.of();
            self.send(GATEWAY, from, process, Message::Done { request, outcome });
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        from: Node,
        process: Process,
        request: &Request,
    ) -> Result<Tried, Violation> {
        let (disk, offset) = position(request.place);
        let len = request.count * UNIT;
        let Some(attached) = self.attached.get(&process) else {
            return Ok(Tried::Answered(DiskOutcome::Lost));
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
                let mut commits: Vec<Committing> = Vec::new();
                for export in &attached.exports {
                    match export.flush_now() {
                        Ok(Flush::Done) => {}
                        Ok(Flush::Waits) => done = false,
                        Ok(Flush::Commits(answer)) => commits.push(Box::pin(async move {
                            answer.await.unwrap_or(Err(IoError::Shutdown))
                        })),
                        Err(error) => failed = Some(error),
                    }
                }
                if done && failed.is_none() && !commits.is_empty() {
                    return Ok(Tried::Commits(commits));
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
            Ok(None) => Tried::Waits,
            Ok(Some(found)) => Tried::Answered(DiskOutcome::Done(found)),
            Err(IoError::Shutdown) if self.makes(Planted::NoFenceOnWrites) => {
                let owner = self.ledger.standing.owner.clone().unwrap_or_default();
                self.attach(process, &owner);
                Tried::Answered(DiskOutcome::Lost)
            }
            Err(IoError::Io) => Tried::Answered(DiskOutcome::Failed),
            Err(_) => {
                // The connection was cut.
                self.attached.remove(&process);
                Tried::Answered(DiskOutcome::Lost)
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
    pub(super) fn answer_guests(&mut self) -> Result<(), Violation> {
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
