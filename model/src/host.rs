//! What is on a host: nothing, a source with its VM, or a standby. The decisions are those of the shipping machines; beside
//! them is only what their loops keep.

use std::collections::{BTreeMap, VecDeque};

use coordinator::commit::{Phase, Source};
use coordinator::standby::Standby;
use nbd_server::group::barriers::{Input, Protection, SealNumber};
use nbd_server::{Epoch, Generation};

use crate::channel::{Checkpoint, Ram};
use crate::history::History;

/// One of the two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Where the VM begins.
    A,
    /// Where the standby begins.
    B,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The id of a process on this host: fresh for each start.
    pub fn process(self, number: u8) -> String {
        format!("{self:?}{number}")
    }
}

/// What runs on a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// Nothing.
    Down,
    /// `epochgate protect`, or a standby that has taken over.
    Source(Box<SourceProcess>),
    /// `epochgate standby`.
    Standby(Box<StandbyProcess>),
}

/// A request of a source or standby for the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    /// The cut.
    Seal {
        /// Of the source.
        generation: Generation,
        /// What it is called.
        number: SealNumber,
    },
    /// COMMIT 2.
    Commit {
        /// Of the source.
        generation: Generation,
        /// Which.
        epoch: Epoch,
        /// Who acknowledged.
        standby: String,
    },
    /// To sync mode.
    Drain {
        /// Of the source.
        generation: Generation,
        /// What is given up.
        protection: Protection,
    },
    /// Takeover.
    TakeOver {
        /// By whom.
        standby: String,
    },
}

impl Request {
    /// As the gateway's machine takes it.
    pub fn input(&self) -> Input {
        match self.clone() {
            Self::Seal { generation, number } => Input::SealAs { generation, number },
            Self::Commit {
                generation,
                epoch,
                standby,
            } => Input::Commit {
                generation,
                epoch,
                standby: Some(standby),
            },
            Self::Drain {
                generation,
                protection,
            } => Input::DrainToSync {
                generation,
                protection: Some(protection),
            },
            Self::TakeOver { standby } => Input::Takeover { standby },
        }
    }

    /// The generation that it claims.
    pub fn generation(&self) -> Option<Generation> {
        match self {
            Self::Seal { generation, .. }
            | Self::Commit { generation, .. }
            | Self::Drain { generation, .. } => Some(*generation),
            Self::TakeOver { .. } => None,
        }
    }

    /// The protection that it belongs to.
    pub fn protection(&self) -> Option<Protection> {
        match self {
            Self::Seal { number, .. } => number.protection,
            Self::Drain { protection, .. } => Some(*protection),
            Self::Commit { .. } | Self::TakeOver { .. } => None,
        }
    }
}

/// The gateway's answer to the request in front, on its way to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The record is durable.
    Committed,
    /// Sync mode, and the newest epoch.
    Drained(Epoch),
    /// The generation is over.
    Fenced,
}

/// A running guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Vm {
    /// Its memory and devices.
    pub memory: History,
    /// Marks the steps that it makes from here on.
    pub run: u8,
    /// What the next checkpoint is a difference to.
    pub tracked: Ram,
}

/// Packets that wait: of each epoch the last one, which implies those before it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct OutputGate {
    /// Sent since the last cut.
    pub open: Option<History>,
    /// Sent before the cut of an epoch.
    pub sealed: VecDeque<(Epoch, History)>,
}

impl OutputGate {
    /// The cut of `epoch`.
    pub fn seal(&mut self, epoch: Epoch) {
        if let Some(last) = self.open.take() {
            self.sealed.push_back((epoch, last));
        }
    }

    /// Takes out what was sent up to and in `epoch`.
    pub fn release(&mut self, epoch: Epoch) -> Option<History> {
        let mut last = None;
        while self
            .sealed
            .front()
            .is_some_and(|(first, _)| *first <= epoch)
        {
            last = self.sealed.pop_front().map(|(_, packet)| packet);
        }
        last
    }

    /// Takes out everything.
    pub fn release_all(&mut self) -> Option<History> {
        let sealed = self.sealed.pop_back().map(|(_, packet)| packet);
        self.sealed.clear();
        self.open.take().or(sealed)
    }
}

/// A source: its machine, its VM and what its three tasks have under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceProcess {
    /// Its owner id.
    pub id: String,
    /// What the gateway gave it.
    pub generation: Generation,
    /// The shipping machine.
    pub machine: Source,
    /// Gone when it was stopped.
    pub vm: Option<Vm>,
    /// Packets that wait.
    pub output: OutputGate,
    /// `gateway_task`: requests in order, the first is under way.
    pub requests: VecDeque<Request>,
    /// The answer to the first.
    pub answer: Option<Answer>,
    /// `vm_task`: the guest is stopped, and the gateway asked to seal.
    pub capturing: bool,
    /// The newest epoch that it was told of.
    pub newest: Epoch,
    /// Counts the standbys that it had.
    pub protection: Protection,
    /// The newest of those that are over: the gateway has said that it has drained.
    pub over: Protection,
    /// `vm_task`: the first copy is being sent over this channel.
    pub copying: Option<u8>,
    /// Captured and not shipped.
    pub captured: Option<Checkpoint>,
    /// `link`: looking for a standby.
    pub seeking: bool,
    /// `link`: the channel.
    pub link: Option<u8>,
}

impl SourceProcess {
    /// A source whose VM has just begun to run, after the epoch `newest`.
    pub fn new(
        id: String,
        generation: Generation,
        newest: Epoch,
        in_flight: usize,
        vm: Vm,
    ) -> Self {
        Self {
            id,
            generation,
            machine: Source::new(in_flight),
            vm: Some(vm),
            output: OutputGate::default(),
            requests: VecDeque::new(),
            answer: None,
            capturing: false,
            newest,
            protection: Protection::default(),
            over: Protection::default(),
            copying: None,
            captured: None,
            seeking: true,
            link: None,
        }
    }

    /// Whether packets wait for a record.
    pub fn holds_output(&self) -> bool {
        matches!(
            self.machine.phase(),
            Phase::Protecting { .. } | Phase::Draining
        )
    }

    /// Nothing is under way that something must become of.
    pub fn is_settled(&self) -> bool {
        let quiet = self.requests.is_empty() && !self.capturing && self.machine.in_flight() == 0;
        let output = self.output.sealed.is_empty();
        quiet
            && match self.machine.phase() {
                Phase::Unprotected => output && self.output.open.is_none(),
                Phase::Protecting { .. } => output,
                Phase::Filling { .. } | Phase::Draining | Phase::Over => false,
            }
    }
}

/// A takeover under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TakeOver {
    /// The gateway has not answered.
    Asked,
    /// It agreed.
    Granted {
        /// The new generation.
        generation: Generation,
        /// E.
        epoch: Epoch,
    },
    /// It refused.
    Refused,
}

/// A standby: its machine and what its loop keeps.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StandbyProcess {
    /// The id that it parks with.
    pub id: String,
    /// The shipping machine, fresh for each source.
    pub machine: Standby,
    /// The channel to the source that it serves.
    pub session: Option<u8>,
    /// The generation of that source.
    pub stamp: Generation,
    /// The RAM image.
    pub ram: Ram,
    /// Complete and verified, not merged.
    pub verified: BTreeMap<Epoch, Checkpoint>,
    /// Asking for the disks.
    pub takeover: Option<TakeOver>,
    /// E, as it was told when it suspected: only a mistaken standby asks then.
    pub early_epoch: Option<Epoch>,
}

impl StandbyProcess {
    /// A standby that waits for a source.
    pub fn new(id: String) -> Self {
        Self {
            id,
            machine: Standby::new(),
            session: None,
            stamp: Generation(0),
            ram: Ram::Empty,
            verified: BTreeMap::new(),
            takeover: None,
            early_epoch: None,
        }
    }

    /// Forgets everything but its id.
    pub fn reset(&mut self) {
        *self = Self::new(std::mem::take(&mut self.id));
    }

    /// Merges what is verified up to `epoch`.
    pub fn merge_up_to(&mut self, epoch: Epoch) {
        let later = self.verified.split_off(&epoch.next());
        for checkpoint in std::mem::replace(&mut self.verified, later).into_values() {
            self.ram = checkpoint.merged_into(self.ram);
        }
    }
}
