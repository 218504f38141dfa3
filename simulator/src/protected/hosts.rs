//! What runs on the two hosts: nothing, a source with its guest, or a standby. The decisions are those of the shipping machines; beside
//! them is only what their loops keep.

use std::collections::{BTreeMap, VecDeque};

use coordinator::checkpoint::{Checkpoint, Incoming};
use coordinator::checkpoint_channel::{Frame, Stamp as FrameStamp};
use coordinator::commit::Source as SourceMachine;
use coordinator::standby::Standby as StandbyMachine;
use nbd_server::group::barriers::{Protection, SealNumber};
use nbd_server::{Epoch, Generation};

use super::guest::Vm;
use super::network::{Node, Process};
use super::world::World;
use crate::gateway::Micros;

/// What the gateway task of a source does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtGateway {
    /// Nothing.
    Idle,
    /// It waits for this answer.
    Waits(u64),
    /// It waits before it asks again.
    Rests,
}

/// How far a capture is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// The guest's requests are being answered.
    Stopping,
    /// The gateway is sealing.
    Sealing(u64),
    /// The gateway does not answer: it is asked again.
    Rests,
}

/// `epochgate protect`, or a guest that was taken over.
#[derive(Debug)]
pub struct Source {
    pub process: Process,
    pub id: String,
    pub generation: Generation,
    pub machine: SourceMachine,
    /// The newest epoch that it was told of.
    pub newest: Epoch,
    /// Counts the standbys that it had.
    pub protection: Protection,
    pub vm: Vm,
    /// Packets since the last cut.
    pub output: Vec<(u64, u64)>,
    /// Packets of the epochs that are sealed.
    pub held: VecDeque<(Epoch, Vec<(u64, u64)>)>,
    pub requests: VecDeque<coordinator::commit::Action>,
    pub at_gateway: AtGateway,
    pub capture: Option<Capture>,
    /// When the gateway is asked to seal no more.
    pub patient_until: Micros,
    pub captured: Option<Vec<Frame>>,
    pub link: Option<u32>,
    pub greeted: Option<u32>,
    pub seeking: bool,
    pub pressed: bool,
    /// How far the first copy is.
    pub base: usize,
    pub last_heard: Micros,
    pub watch: Option<u64>,
    /// Requests that were answered since the faults ended.
    pub progress: u64,
    /// The VM ends as planned.
    pub ending: bool,
}

impl Source {
    /// A source whose guest is not seen yet, of an owner that was told of the epoch `newest`.
    pub fn new(
        process: Process,
        id: String,
        (generation, newest): (Generation, Epoch),
        in_flight: usize,
        vm: Vm,
    ) -> Self {
        Self {
            process,
            id,
            generation,
            machine: SourceMachine::new(in_flight),
            newest,
            protection: Protection::default(),
            vm,
            output: Vec::new(),
            held: VecDeque::new(),
            requests: VecDeque::new(),
            at_gateway: AtGateway::Idle,
            capture: None,
            patient_until: 0,
            captured: None,
            link: None,
            greeted: None,
            seeking: true,
            pressed: false,
            base: 0,
            last_heard: 0,
            watch: None,
            progress: 0,
            ending: false,
        }
    }

    /// What the next seal is called.
    pub fn next_seal(&self) -> SealNumber {
        SealNumber {
            epoch: self.newest.next(),
            protection: Some(self.protection),
        }
    }
}

/// `epochgate standby`.
#[derive(Debug)]
pub struct Standby {
    pub process: Process,
    pub id: String,
    pub session: Option<Session>,
}

/// One source, from its Hello to its end.
#[derive(Debug)]
pub struct Session {
    pub link: u32,
    pub stamp: FrameStamp,
    pub machine: StandbyMachine,
    pub ram: Vec<u8>,
    pub incoming: Option<Incoming>,
    pub verified: BTreeMap<Epoch, Checkpoint>,
    pub devices: Option<Vec<u8>>,
    pub last_heard: Micros,
    pub parking: Option<u64>,
    pub takeover: Option<u64>,
}

/// What runs on a host.
#[derive(Debug)]
pub enum Host {
    /// Nothing.
    Down,
    /// A source.
    Source(Box<Source>),
    /// A standby.
    Standby(Box<Standby>),
}

impl World<'_> {
    /// The process on a host.
    pub fn process_of(&self, node: Node) -> Option<Process> {
        match self.hosts.get(node)? {
            Host::Down => None,
            Host::Source(source) => Some(source.process),
            Host::Standby(standby) => Some(standby.process),
        }
    }

    /// Whether a host is stopped for a while.
    pub fn is_asleep(&self, node: Node) -> bool {
        self.now < self.asleep_until[node]
    }

    /// The source on a host.
    pub fn source(&mut self, node: Node) -> Option<&mut Source> {
        match self.hosts.get_mut(node)? {
            Host::Source(source) => Some(source),
            _ => None,
        }
    }

    /// The standby on a host.
    pub fn standby(&mut self, node: Node) -> Option<&mut Standby> {
        match self.hosts.get_mut(node)? {
            Host::Standby(standby) => Some(standby),
            _ => None,
        }
    }

    /// The session of the standby on a host.
    pub fn session(&mut self, node: Node) -> Option<&mut Session> {
        self.standby(node)?.session.as_mut()
    }
}
