//! What the loop of a standby does around its machine: `standby_loop` of the coordinator, restated in small steps. It decides nothing that
//! the machine decides.

use std::collections::BTreeMap;

use bytes::Bytes;
use coordinator::checkpoint::{Incoming, Pages};
use coordinator::checkpoint_channel::{Frame, Kind, Stamp as FrameStamp};
use coordinator::standby::{Action, Event as Told, Phase, Standby as StandbyMachine};
use nbd_server::control::api::ErrorKind;
use nbd_server::group::barriers::Input;
use nbd_server::{Epoch, Generation};
use xxhash_rust::xxh3::xxh3_64;

use super::control::{Ask, Reply};
use super::guest::RAM;
use super::hosts::{Host, Session, Standby};
use super::network::{GATEWAY, Message, Node};
use super::queue::Timer;
use super::source_link::decode;
use super::world::World;
use crate::planted::Planted;
use crate::{Violation, violation};

/// Between two attempts to reach the gateway for a takeover.
const TAKEOVER_AGAIN: u64 = 2_000;

impl World<'_> {
    /// A standby that holds nothing starts on a host.
    pub fn start_standby(&mut self, node: Node) {
        let process = self.fresh_process();
        let id = format!("host{node}:{process}");
        let session = None;
        self.hosts[node] = Host::Standby(Box::new(Standby {
            process,
            id,
            session,
        }));
    }

    /// A source greets a host that can't serve it.
    pub fn refuse_hello(&mut self, node: Node, link: u32) {
        if let Some(ends) = self.links.get(&link) {
            let (to, process) = ends.source;
            self.send(node, to, process, Message::Refused);
        }
    }

    /// Something arrives at a standby.
    pub fn standby_receives(&mut self, node: Node, message: Message) -> Result<(), Violation> {
        match message {
            Message::Hello { link, stamp } => self.hello(node, link, stamp),
            Message::Reply { number, reply } => self.reply_to_standby(node, number, reply),
            Message::Frame { link, bytes } => self.frame_at_standby(node, link, &bytes),
            Message::Closed { link } => {
                let session = self.session(node);
                let mine = session
                    .is_some_and(|session| session.link == link && session.takeover.is_none());
                if mine { self.source_lost(node) } else { Ok(()) }
            }
            _ => Ok(()),
        }
    }

    fn hello(&mut self, node: Node, link: u32, stamp: FrameStamp) -> Result<(), Violation> {
        let number = self.number();
        let now = self.now;
        let Some(standby) = self.standby(node) else {
            return Ok(());
        };
        if standby.session.is_some() {
            self.refuse_hello(node, link);
            return Ok(());
        }
        let mut machine = StandbyMachine::new();
        machine.step(Told::SourceJoined);
        let (process, id) = (standby.process, standby.id.clone());
        standby.session = Some(Session {
            link,
            stamp,
            machine,
            ram: vec![0; RAM],
            incoming: None,
            verified: BTreeMap::new(),
            devices: None,
            last_heard: now,
            parking: Some(number),
            takeover: None,
        });
        let ask = Ask::Park(id);
        self.send(node, GATEWAY, process, Message::Ask { number, ask });
        Ok(())
    }

    fn reply_to_standby(&mut self, node: Node, number: u64, reply: Reply) -> Result<(), Violation> {
        let now = self.now;
        let suspicion = self.suspicion;
        let Some(standby) = self.standby(node) else {
            return Ok(());
        };
        let (process, id) = (standby.process, standby.id.clone());
        let Some(session) = &mut standby.session else {
            return Ok(());
        };
        if session.parking == Some(number) {
            session.parking = None;
            session.last_heard = now;
            let link = session.link;
            if !matches!(reply, Reply::Done) {
                self.refuse_hello(node, link);
                self.end_session(node);
                return Ok(());
            }
            if let Some(ends) = self.links.get(&link) {
                let (to, source) = ends.source;
                let welcome = Message::Welcome { link, standby: id };
                self.send(node, to, source, welcome);
            }
            self.later(node, process, suspicion / 4, Timer::Heartbeat(link));
            return Ok(());
        }
        if session.takeover != Some(number) {
            return Ok(());
        }
        match reply {
            Reply::Good(answer) => self.taken_over(node, answer.generation, answer.committed),
            Reply::Unreachable
            | Reply::Error(ErrorKind::Io | ErrorKind::LogFull | ErrorKind::Stopping) => {
                self.later(node, process, TAKEOVER_AGAIN, Timer::TakeOver);
                Ok(())
            }
            Reply::Error(kind) => {
                self.trace.note(
                    self.now,
                    format_args!("the takeover of host {node} is refused: {kind:?}"),
                );
                self.trace.reach("takeover refused");
                self.discard(node);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn discard(&mut self, node: Node) {
        if let Some(session) = self.session(node) {
            let reason = String::new();
            session.machine.step(Told::TakeoverRefused { reason });
        }
        self.end_session(node);
    }

    /// The standby waits for the next source, with nothing.
    pub fn end_session(&mut self, node: Node) {
        let Some(session) = self.session(node) else {
            return;
        };
        let link = session.link;
        self.close(node, link);
        if let Some(standby) = self.standby(node) {
            standby.session = None;
            let process = standby.process;
            self.attached.remove(&process);
        }
    }

    fn frame_at_standby(&mut self, node: Node, link: u32, wire: &Bytes) -> Result<(), Violation> {
        let now = self.now;
        let broken = self.links.get(&link).is_none_or(|link| link.broken);
        let unverified = self.makes(Planted::AckBeforeVerify);
        let Some(session) = self.session(node) else {
            return Ok(());
        };
        if session.link != link || session.machine.phase() != Phase::Receiving || broken {
            return Ok(());
        }
        session.last_heard = now;
        let frame = match decode(wire) {
            Some(frame) => frame,
            None if unverified && wire.len() > 80 => {
                // What a reader that does not look at checksums would make of it.
                return self.take_unverified(node, wire);
            }
            None => return self.source_lost(node),
        };
        if frame.stamp != session.stamp {
            return self.source_lost(node);
        }
        if self.take(node, frame)? {
            Ok(())
        } else {
            self.source_lost(node)
        }
    }

    /// A planted mistake: pages are merged as they come, and the checkpoint is acknowledged whatever came.
    fn take_unverified(&mut self, node: Node, wire: &Bytes) -> Result<(), Violation> {
        let payload = wire.slice(64..);
        if let Some(session) = self.session(node)
            && let Ok(pages) = Pages::decode(payload, RAM as u64)
        {
            merge(&mut session.ram, &pages);
        }
        Ok(())
    }

    /// False ends the session.
    fn take(&mut self, node: Node, frame: Frame) -> Result<bool, Violation> {
        let Some(session) = self.session(node) else {
            return Ok(true);
        };
        match frame.kind {
            Kind::BasePages => {
                if session.machine.holds_anything() {
                    return Ok(false);
                }
                let Ok(pages) = Pages::decode(frame.payload, RAM as u64) else {
                    return Ok(false);
                };
                merge(&mut session.ram, &pages);
                Ok(true)
            }
            Kind::Pages | Kind::Device => {
                let incoming = session
                    .incoming
                    .get_or_insert_with(|| Incoming::new(frame.epoch, RAM as u64));
                Ok(incoming.take(frame).is_ok())
            }
            Kind::Commit1 => self.take_commit1(node, &frame),
            Kind::Commit3 => {
                let actions = session.machine.step(Told::Commit3 { epoch: frame.epoch });
                for action in actions {
                    if let Action::MergeUpTo { epoch } = action {
                        self.merge_up_to(node, epoch)?;
                    }
                }
                Ok(true)
            }
            Kind::Heartbeat => Ok(true),
            Kind::End => {
                session.machine.step(Told::SourceEnded);
                self.end_session(node);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn take_commit1(&mut self, node: Node, commit1: &Frame) -> Result<bool, Violation> {
        let unverified = self.makes(Planted::AckBeforeVerify);
        let early = self.makes(Planted::MergeBeforeRecord);
        let Some(standby) = self.standby(node) else {
            return Ok(true);
        };
        let id = standby.id.clone();
        let Some(session) = &mut standby.session else {
            return Ok(true);
        };
        let incoming = session.incoming.take();
        let incoming = incoming.unwrap_or_else(|| Incoming::new(commit1.epoch, RAM as u64));
        let checkpoint = match incoming.complete(commit1) {
            Ok(checkpoint) => Some(checkpoint),
            Err(_) if unverified => None,
            Err(_) => return Ok(false),
        };
        let epoch = commit1.epoch;
        let actions = session.machine.step(Told::Verified { epoch });
        if !actions.contains(&Action::AckCommit1 { epoch }) {
            return Ok(false);
        }
        let (link, stamp) = (session.link, session.stamp);
        if let Some(checkpoint) = checkpoint {
            // What the memory would be with it: the reference wants to know.
            let mut ram = session.ram.clone();
            let before = session.verified.values();
            for pages in before.chain([&checkpoint]).flat_map(|it| &it.pages) {
                merge(&mut ram, pages);
            }
            session.verified.insert(epoch, checkpoint);
            let held = (id, stamp.generation, epoch, xxh3_64(&ram));
            self.ledger.verified.insert(held);
        }
        if early {
            self.merge_up_to(node, epoch)?;
        }
        let ack = Frame::new(Kind::Commit1Ack, stamp, epoch, Bytes::new());
        self.send_frame(node, link, &ack);
        Ok(true)
    }

    fn merge_up_to(&mut self, node: Node, epoch: Epoch) -> Result<(), Violation> {
        let Some(session) = self.session(node) else {
            return Ok(());
        };
        let generation = session.stamp.generation;
        while let Some(entry) = session.verified.first_entry() {
            if *entry.key() > epoch {
                break;
            }
            let checkpoint = entry.remove();
            for pages in &checkpoint.pages {
                merge(&mut session.ram, pages);
            }
            session.devices = Some(checkpoint.device_state);
        }
        if !self.ledger.is_committed(generation, epoch) {
            return violation!("2: memory of epoch {epoch} is merged before its record");
        }
        Ok(())
    }

    /// The source is lost: the gateway is asked.
    pub fn source_lost(&mut self, node: Node) -> Result<(), Violation> {
        let alone = self.makes(Planted::TakeOverAlone);
        let Some(session) = self.session(node) else {
            return Ok(());
        };
        let actions = session.machine.step(Told::SourceLost);
        if !actions.contains(&Action::TakeOver) {
            self.end_session(node);
            return Ok(());
        }
        if alone {
            let newest = session.verified.last_key_value().map(|(epoch, _)| *epoch);
            let newest = newest.or(session.machine.merged()).unwrap_or_default();
            let generation = session.stamp.generation;
            return self.taken_over(node, generation, newest);
        }
        self.trace
            .note(self.now, format_args!("host {node} has lost its source"));
        self.ask_for_takeover(node)
    }

    /// Asks the gateway for the disks.
    pub fn ask_for_takeover(&mut self, node: Node) -> Result<(), Violation> {
        let number = self.number();
        let Some(standby) = self.standby(node) else {
            return Ok(());
        };
        let (process, id) = (standby.process, standby.id.clone());
        let Some(session) = &mut standby.session else {
            return Ok(());
        };
        if session.machine.phase() != Phase::TakingOver {
            return Ok(());
        }
        session.takeover = Some(number);
        let ask = Ask::Input(Input::Takeover { standby: id });
        self.send(node, GATEWAY, process, Message::Ask { number, ask });
        Ok(())
    }

    fn taken_over(
        &mut self,
        node: Node,
        generation: Generation,
        epoch: Epoch,
    ) -> Result<(), Violation> {
        let resume_merged = self.makes(Planted::ResumeFromMerged);
        let Some(session) = self.session(node) else {
            return Ok(());
        };
        let old = session.stamp.generation;
        let epoch = if resume_merged {
            session.machine.merged().unwrap_or(epoch)
        } else {
            epoch
        };
        let actions = session.machine.step(Told::TakenOver { epoch });
        if !actions.contains(&Action::Resume { epoch }) {
            self.trace.reach("takeover without memory");
            self.trace.note(
                self.now,
                format_args!("host {node} does not hold epoch {epoch}"),
            );
            self.end_session(node);
            return Ok(());
        }
        self.merge_up_to(node, epoch)?;
        let Some(standby) = self.standby(node) else {
            return Ok(());
        };
        let (process, id) = (standby.process, standby.id.clone());
        let Some(session) = standby.session.take() else {
            return Ok(());
        };
        self.close(node, session.link);
        let hash = xxh3_64(&session.ram);
        let mut device = hash.to_le_bytes().to_vec();
        device.extend_from_slice(&epoch.0.to_le_bytes());
        if session.devices.as_ref() != Some(&device) {
            return violation!("1: memory and devices of epoch {epoch} are not of one instant");
        }
        let cut = self.ledger.cut(old, epoch);
        if let Some(memory) = cut.and_then(|cut| cut.memory)
            && memory != hash
        {
            return violation!("7: the guest goes on from other memory than that of epoch {epoch}");
        }
        self.trace.note(
            self.now,
            format_args!("host {node} goes on from epoch {epoch} in generation {generation}"),
        );
        self.becomes_source(node, process, id, (generation, epoch), session.ram)
    }
}

fn merge(ram: &mut [u8], pages: &Pages) {
    for (offset, bytes) in pages.iter() {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        ram[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
