//! The state of everything at once, and the small steps in which it changes. What the two sides do is in `source_side` and
//! `standby_side`, what goes wrong in `faults`.

use std::collections::BTreeSet;

use nbd_server::group::barriers::Input;
use nbd_server::{Epoch, Generation};

use crate::bounds::Bounds;
use crate::channel::{Channel, Ram};
use crate::gateway::{Course, Gateway, Judge};
use crate::history::History;
use crate::host::{Host, Request, Side, SourceProcess, StandbyProcess, Vm};
use crate::mutation::Mutation;
use crate::rules::Rule;

/// Numbers that are given out once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Next {
    /// Of a process.
    pub process: u8,
    /// Of a run of the guest.
    pub run: u8,
    /// Of a channel.
    pub channel: u8,
}

impl Next {
    fn take(number: &mut u8) -> u8 {
        let taken = *number;
        *number = number.saturating_add(1);
        taken
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The storage host.
    pub gateway: Gateway,
    /// Host A.
    pub a: Host,
    /// Host B.
    pub b: Host,
    /// Channels that at least one side has not closed.
    pub channels: Vec<Channel>,
    /// First copies of requests that were asked again, or whose sender is gone: they may still arrive.
    pub strays: BTreeSet<Request>,
    /// Who holds which memory, complete and verified, of epochs that are not committed.
    pub acked: BTreeSet<(String, Epoch, History)>,
    /// What the outside world has seen: no packet here implies another.
    pub seen: Vec<History>,
    /// The generation of the last cold start.
    pub cold_since: Generation,
    /// Steps that the guest may still make.
    pub steps_left: u8,
    /// Faults that may still happen.
    pub faults_left: u8,
    /// Numbers.
    pub next: Next,
    /// A fault happened that nothing protects from, and that the VM says so about.
    pub excused: bool,
    /// The first rule that was broken.
    pub verdict: Option<Rule>,
}

/// What a run of the checker is about.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// How far it goes.
    pub bounds: Bounds,
    /// The mistake that is made.
    pub mutation: Option<Mutation>,
}

impl Protocol {
    /// Whether this mistake is made.
    pub fn makes(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

impl World {
    /// A source runs unprotected on A, a standby waits on B.
    pub fn start(protocol: &Protocol) -> Self {
        let mut world = Self {
            gateway: Gateway::new(),
            a: Host::Down,
            b: Host::Down,
            channels: Vec::new(),
            strays: BTreeSet::new(),
            acked: BTreeSet::new(),
            seen: Vec::new(),
            cold_since: Generation(0),
            steps_left: protocol.bounds.steps,
            faults_left: protocol.bounds.faults,
            next: Next::default(),
            excused: false,
            verdict: None,
        };
        world.cold_start(protocol, Side::A);
        world.start_standby(Side::B);
        world
    }

    /// What runs on a host.
    pub fn host(&self, side: Side) -> &Host {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }

    /// The same, to be changed.
    pub fn host_mut(&mut self, side: Side) -> &mut Host {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }

    /// The source on a host.
    pub fn source(&self, side: Side) -> Option<&SourceProcess> {
        match self.host(side) {
            Host::Source(source) => Some(source),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn source_mut(&mut self, side: Side) -> Option<&mut SourceProcess> {
        match self.host_mut(side) {
            Host::Source(source) => Some(source),
            _ => None,
        }
    }

    /// The standby on a host.
    pub fn standby(&self, side: Side) -> Option<&StandbyProcess> {
        match self.host(side) {
            Host::Standby(standby) => Some(standby),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn standby_mut(&mut self, side: Side) -> Option<&mut StandbyProcess> {
        match self.host_mut(side) {
            Host::Standby(standby) => Some(standby),
            _ => None,
        }
    }

    /// A channel by its number.
    pub fn channel_mut(&mut self, number: u8) -> Option<&mut Channel> {
        self.channels
            .iter_mut()
            .find(|channel| channel.number == number)
    }

    /// The gateway, and what judges its log operations.
    pub fn at_gateway(&mut self, protocol: &Protocol) -> (&mut Gateway, Judge<'_>) {
        let judge = Judge {
            acked: &self.acked,
            mutation: protocol.mutation,
            verdict: &mut self.verdict,
        };
        (&mut self.gateway, judge)
    }

    /// `rule` is broken.
    pub fn broken(&mut self, rule: Rule) {
        self.verdict.get_or_insert(rule);
    }

    /// A packet leaves.
    pub fn see(&mut self, packet: History) {
        if self.seen.iter().any(|seen| packet.begins(*seen)) {
            return;
        }
        self.seen.retain(|seen| !seen.begins(packet));
        self.seen.push(packet);
        self.seen.sort_unstable();
    }

    /// A fresh run of the guest, going on from `memory`.
    pub fn run_from(&mut self, memory: History) -> Vm {
        Vm {
            memory,
            run: Next::take(&mut self.next.run),
            tracked: Ram::Empty,
        }
    }

    /// A fresh channel.
    pub fn open_channel(&mut self) -> u8 {
        let number = Next::take(&mut self.next.channel);
        self.channels.push(Channel::new(number));
        number
    }

    /// A standby that holds nothing starts on a host.
    pub fn start_standby(&mut self, side: Side) {
        let id = side.process(Next::take(&mut self.next.process));
        *self.host_mut(side) = Host::Standby(Box::new(StandbyProcess::new(id)));
    }

    /// `epochgate protect --cold-start` on a host: the VM boots from the disks. What the outside world has seen of an
    /// earlier run is not promised any more. False if the gateway does not answer.
    pub fn cold_start(&mut self, protocol: &Protocol, side: Side) -> bool {
        let id = side.process(Next::take(&mut self.next.process));
        let input = Input::AttachSource { owner: id.clone() };
        let (gateway, mut judge) = self.at_gateway(protocol);
        let Ok((generation, newest)) = gateway.ask(input, None, Course::Good, &mut judge) else {
            return false;
        };
        self.seen.clear();
        self.cold_since = generation;
        let vm = self.run_from(self.gateway.durable);
        let source = SourceProcess::new(id, generation, newest, protocol.bounds.in_flight, vm);
        *self.host_mut(side) = Host::Source(Box::new(source));
        true
    }

    /// What must be done after every step: forget what no rule needs any more.
    pub fn tidy(&mut self) {
        self.channels
            .retain(|channel| channel.source_open || channel.standby_open);
        let committed = self.gateway.log.committed;
        self.acked.retain(|(_, epoch, _)| *epoch > committed);
        if self.gateway.running.is_none() {
            // They were in the buffers of its connections.
            self.strays.clear();
        }
    }
}
