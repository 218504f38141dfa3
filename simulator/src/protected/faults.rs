//! What goes wrong, when, and who repairs it: a plan that the seed chooses, an operator who starts what does not start by itself, and what
//! must hold when it is calm again.

use rand::Rng;
use rand::rngs::StdRng;

use super::control::Ask;
use super::hosts::Host;
use super::network::{A, B, GATEWAY, Message, Node};
use super::queue::Event;
use super::source_link::stamp_of;
use super::world::World;
use crate::blocks::{Stamp, shown};
use crate::gateway::{Gateway, Micros};
use crate::storage::Op;
use crate::{Violation, violation};
use coordinator::commit::{Event as Told, Phase};

/// How long everything may take to settle when nothing goes wrong any more.
pub const COOL_DOWN: Micros = 500_000;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The gateway's process dies, at once.
    GatewayKill,
    /// It, or the power of its host, dies between two changes of the disk.
    GatewayDies,
    /// The power of the storage host.
    Power,
    /// A host with all that is on it.
    HostCrash,
    /// QEMU alone; its coordinator yields.
    VmDies,
    /// A standby loses what it holds.
    StandbyDrop,
    /// The channel breaks.
    LinkBreak,
    /// No packets between two places for a while, in one direction or both.
    Cut,
    /// A host is stopped for a while, and wakes.
    Sleep,
    /// A frame of the channel is altered.
    Damage,
    /// The log's disk is full for a while.
    Full,
    /// An operation of the storage fails.
    Eio,
    /// An answer of the gateway is lost.
    LostAnswer,
    /// A request reaches the gateway late: for a second time, or when nobody waits for it any more.
    Repeat,
}

/// Which request is to come late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// The next COMMIT 2, or the detach, for a second time.
    Commit,
    /// The next drain, for a second time.
    Drain,
    /// The next seal, for a second time.
    Seal,
    /// The next seal, and its source gives it up before.
    GivenUpSeal,
}

impl Repeat {
    const ALL: [Self; 4] = [Self::Commit, Self::Drain, Self::Seal, Self::GivenUpSeal];
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::GatewayKill,
        Self::GatewayDies,
        Self::Power,
        Self::HostCrash,
        Self::VmDies,
        Self::StandbyDrop,
        Self::LinkBreak,
        Self::Cut,
        Self::Sleep,
        Self::Damage,
        Self::Full,
        Self::Eio,
        Self::LostAnswer,
        Self::Repeat,
    ];

    /// The kinds of one seed: mostly a few, so that they meet.
    pub fn choose(random: &mut StdRng) -> Vec<Self> {
        if random.random_ratio(1, 3) {
            return Self::ALL.to_vec();
        }
        let count = random.random_range(1..4);
        (0..count)
            .map(|_| Self::ALL[random.random_range(0..Self::ALL.len())])
            .collect()
    }

    fn name(self) -> &'static str {
        match self {
            Self::GatewayKill => "kill the gateway",
            Self::GatewayDies => "gateway dies between changes",
            Self::Power => "power",
            Self::HostCrash => "host crash",
            Self::VmDies => "QEMU dies",
            Self::StandbyDrop => "standby loses all",
            Self::LinkBreak => "link break",
            Self::Cut => "cut",
            Self::Sleep => "sleep",
            Self::Damage => "damaged frame",
            Self::Full => "log full",
            Self::Eio => "eio",
            Self::LostAnswer => "lost answer",
            Self::Repeat => "repeated request",
        }
    }
}

impl World<'_> {
    /// The next fault.
    pub fn fault(&mut self) -> Result<(), Violation> {
        if self.calm || self.faults >= self.max_faults {
            return Ok(());
        }
        self.faults += 1;
        if self.faults == 1 {
            self.was_protected = [A, B].into_iter().any(|node| {
                self.source(node)
                    .is_some_and(|source| source.machine.protected())
            });
        }
        let kind = self.kinds[self.random.random_range(0..self.kinds.len())];
        self.trace.fault(self.now, kind.name(), format_args!(""));
        let soon = self.random.random_ratio(1, 2);
        let next = self
            .random
            .random_range(if soon { 500..40_000 } else { 20_000..200_000 });
        self.at(self.now + next, Event::Fault);
        let node = self.random.random_range(A..=B);
        match kind {
            Kind::GatewayKill => self.crash_gateway(false),
            Kind::GatewayDies => {
                let changes = self.random.random_range(0..30);
                self.storage.disk.die_after(Some(changes));
                Ok(())
            }
            Kind::Power => {
                let power = !self.storage_failed;
                self.crash_gateway(power)
            }
            Kind::HostCrash => self.host_crash(node),
            Kind::VmDies => {
                if self.source(node).is_some() {
                    self.vm_lost(node, "QEMU died")?;
                }
                Ok(())
            }
            Kind::StandbyDrop => {
                if self.standby(node).is_some() {
                    self.end_session(node);
                    self.start_standby(node);
                }
                Ok(())
            }
            Kind::LinkBreak => self.break_links(),
            Kind::Cut => {
                let ways = [
                    (A, B),
                    (B, A),
                    (A, GATEWAY),
                    (GATEWAY, A),
                    (B, GATEWAY),
                    (GATEWAY, B),
                ];
                let (from, to) = ways[self.random.random_range(0..ways.len())];
                let until = self.now + self.random.random_range(5_000..300_000);
                self.cut_until[from][to] = until;
                if self.random.random_bool(0.5) {
                    self.cut_until[to][from] = until;
                }
                Ok(())
            }
            Kind::Sleep => {
                self.asleep_until[node] = self.now + self.random.random_range(5_000..400_000);
                Ok(())
            }
            Kind::Damage => {
                self.damage = true;
                Ok(())
            }
            Kind::Full => {
                let room = self.random.random_range(0..12 << 10);
                self.storage.disk.leave_room(room);
                let until = self.now + self.random.random_range(5_000..200_000);
                self.at(until, Event::MakeRoom);
                Ok(())
            }
            Kind::Eio => {
                let op = Op::ALL[self.random.random_range(0..Op::ALL.len())];
                self.storage_failed |= op != Op::ReadImage;
                self.storage.disk.fail(op, self.random.random_range(0..6));
                Ok(())
            }
            Kind::LostAnswer => {
                self.lose_answer = true;
                Ok(())
            }
            Kind::Repeat => {
                self.repeat = Some(Repeat::ALL[self.random.random_range(0..Repeat::ALL.len())]);
                Ok(())
            }
        }
    }

    fn host_crash(&mut self, node: Node) -> Result<(), Violation> {
        if matches!(self.hosts[node], Host::Down) {
            return Ok(());
        }
        // Whoever is connected with it finds the connection dead, or only silence.
        let told = self.random.random_bool(0.5);
        let links: Vec<u32> = self.links.keys().copied().collect();
        for link in links {
            let ends = &self.links[&link];
            if ends.source.0 == node || ends.standby.0 == node {
                if told {
                    self.close(node, link);
                } else if let Some(ends) = self.links.get_mut(&link) {
                    ends.broken = true;
                }
            }
        }
        if let Some(process) = self.process_of(node) {
            self.attached.remove(&process);
        }
        self.hosts[node] = Host::Down;
        let after = self.random.random_range(5_000..200_000);
        self.at(self.now + after, Event::StartStandby(node));
        Ok(())
    }

    fn break_links(&mut self) -> Result<(), Violation> {
        let links: Vec<u32> = self.links.keys().copied().collect();
        for link in links {
            let (source, standby) = (self.links[&link].source, self.links[&link].standby);
            if self.links[&link].broken {
                continue;
            }
            // Each side finds it dead in its own time; what was under way arrives or not.
            if self.random.random_bool(0.7) {
                self.close(source.0, link);
            }
            if self.random.random_bool(0.7) {
                self.close(standby.0, link);
            }
            if self.random.random_bool(0.5)
                && let Some(ends) = self.links.get_mut(&link)
            {
                ends.broken = true;
            }
        }
        Ok(())
    }

    /// An operator looks: is there a VM, does the gateway work?
    pub fn operator(&mut self) -> Result<(), Violation> {
        self.at(self.now + 50_000, Event::Operator);
        let broken = self.ledger.standing.gate == nbd_server::group::barriers::Gate::Broken;
        if self.gateway.is_some() && broken {
            self.trace
                .note(self.now, format_args!("the operator restarts the gateway"));
            return self.crash_gateway(false);
        }
        let source = [A, B].into_iter().any(|node| self.source(node).is_some());
        let taking = [A, B].into_iter().any(|node| {
            self.session(node)
                .is_some_and(|session| session.machine.holds_anything())
        });
        if source || taking {
            self.vm_seen = self.now;
            return Ok(());
        }
        if self.now - self.vm_seen < 150_000 || self.gateway.is_none() {
            return Ok(());
        }
        if self.is_single_failure_lost() {
            return violation!("7: a single failure, and the protected VM has to be started again");
        }
        let node = self.random.random_range(A..=B);
        self.cold_start(node);
        Ok(())
    }

    /// Whether a standby held the memory, and one fault was enough to lose the VM.
    fn is_single_failure_lost(&self) -> bool {
        let held = self.ledger.standing.holder.is_some();
        held && self.faults <= 1 && self.was_protected && !self.excused
    }

    /// Nothing has gone wrong for long: the VM runs, is protected if that can be, and everything that it wrote is there.
    pub fn end(&mut self) -> Result<(), Violation> {
        let Some(node) = [A, B].into_iter().find(|node| {
            self.source(*node)
                .is_some_and(|source| source.generation.0 > 0)
        }) else {
            return violation!("the VM goes on: there is none at the end");
        };
        let current = self.ledger.standing.generation;
        let Some(source) = self.source(node) else {
            return Ok(());
        };
        if source.progress < 5 || source.generation != current {
            return violation!(
                "the VM goes on: its disk does not answer at the end; {:?}, generation {} of {current}, requests {:?}",
                source.machine.phase(),
                source.generation,
                source.vm.requests
            );
        }
        if source.seeking || source.link.is_some() {
            let protected = source.machine.protected();
            if !protected {
                return violation!(
                    "the VM goes on: it is not protected at the end, {:?}",
                    source.machine.phase()
                );
            }
        }
        // The guest comes to rest, and the VM ends as planned.
        source.vm.stopped = true;
        source.vm.requests.clear();
        source.capture = None;
        let stamp = stamp_of(source.generation);
        let phase = source.machine.phase().clone();
        self.trace.note(
            self.now,
            format_args!("the end on host {node}, {phase:?}, {stamp:?}"),
        );
        if matches!(phase, Phase::Unprotected) {
            self.trace.reach("ended unprotected");
        }
        self.tell(node, Told::VmEnded)?;
        let live = self.drain_gateway()?;
        self.compare_images(&live)
    }

    /// The gateway takes what the VM left, and stops in order. What that was.
    fn drain_gateway(&mut self) -> Result<Vec<Stamp>, Violation> {
        let generation = self.ledger.standing.generation;
        let number = self.number();
        let input = nbd_server::group::barriers::Input::Detach { generation };
        let ask = Ask::Input(input);
        let message = Message::Ask { number, ask };
        self.gateway_receives(A, 0, self.incarnation, message)?;
        let limit = self.now + 30_000_000;
        let drained = |world: &Self| world.ledger.standing.generation > generation;
        // The reference forgets with the generation what is not committed.
        let mut live = self.ledger.live.clone();
        while !drained(self) {
            live.clone_from(&self.ledger.live);
            let Some(due) = self.gateway.as_ref().and_then(Gateway::due) else {
                return violation!("the VM goes on: the gateway does not take its disks back");
            };
            self.now = due.max(self.now);
            if self.now > limit {
                return violation!("the VM goes on: the gateway takes for ever to drain");
            }
            self.gateway_turn()?;
        }
        let Some(mut gateway) = self.gateway.take() else {
            return Ok(live);
        };
        gateway.stepped.begin_stop();
        gateway.poke(self.now, &mut self.random);
        while !gateway.is_over() {
            let Some(due) = gateway.due() else {
                return violation!("the VM goes on: the gateway does not stop");
            };
            self.now = due.max(self.now);
            gateway.turn(self.now, &mut self.random);
        }
        drop(gateway);
        self.storage.disk.process_ends();
        Ok(live)
    }

    /// What the images show is what was written, also after the power is gone and the group was opened again.
    fn compare_images(&mut self, live: &[Stamp]) -> Result<(), Violation> {
        // In sync mode what was not flushed may go.
        if !self.storage_failed && self.ledger.is_flushed() {
            self.storage.power_loss();
        }
        match self.storage.start(self.now) {
            Ok(gateway) => self.gateway = Some(gateway),
            Err(error) => return violation!("the group does not open at the end: {error:?}"),
        }
        for (place, sectors) in self.storage.image_stamps().iter().enumerate() {
            if *sectors != [Some(shown(live[place])); 2] {
                return violation!(
                    "7: at the end the image shows {sectors:?} at {place}, and {:x} was written",
                    live[place]
                );
            }
        }
        self.done = true;
        self.check_past(1)
    }
}
