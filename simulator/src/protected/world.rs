//! Everything at once: hosts, network, clock. Takes one event after the other from the queue and gives it to the part that it is for. What the
//! parts do with it is in `gateway_side`, `source_side` and `standby_side`, what goes wrong in `faults`.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use coordinator::checkpoint::{Checkpoint, Incoming};
use coordinator::checkpoint_channel::{Frame, Stamp as FrameStamp};
use coordinator::commit::Source as SourceMachine;
use coordinator::standby::Standby as StandbyMachine;
use nbd_server::group::GroupMode;
use nbd_server::{Epoch, Generation};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::faults::{COOL_DOWN, Kind};
use super::gateway_side::{Ask, Attached, Pending, Reply, Subscription};
use super::guest::{Request, Vm};
use super::ledger::Ledger;
use crate::blocks::Stamp;
use crate::gateway::{Gateway, Micros, StorageHost};
use crate::planted::Planted;
use crate::trace::Trace;
use crate::{Options, Violation, violation};

/// A place on the network.
pub type Node = usize;
/// Where the VM begins.
pub const A: Node = 0;
/// Where the standby begins.
pub const B: Node = 1;
/// The storage host.
pub const GATEWAY: Node = 2;

/// One start of a process; never used again.
pub type Process = u32;

/// What goes over the network.
#[derive(Debug)]
pub enum Message {
    /// To the gateway: the control API.
    Ask { number: u64, ask: Ask },
    /// From the gateway: an answer.
    Reply { number: u64, reply: Reply },
    /// To the gateway: a request of a guest.
    Disk { request: Request },
    /// From the gateway: what became of it.
    Done {
        request: Request,
        outcome: DiskOutcome,
    },
    /// From the gateway: an event for whom it concerns.
    Fenced,
    /// From the gateway: memory runs short.
    Pressure,
    /// Source to standby: who are you?
    Hello { link: u32, stamp: FrameStamp },
    /// Standby to source: ready.
    Welcome { link: u32, standby: String },
    /// Standby to source: not now.
    Refused,
    /// A frame over the checkpoint channel, as bytes.
    Frame { link: u32, bytes: Bytes },
    /// The channel is closed.
    Closed { link: u32 },
}

/// What became of a guest's request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskOutcome {
    /// Done; a read shows these.
    Done(Vec<[Option<Stamp>; 2]>),
    /// The connection is gone, or refused.
    Lost,
    /// The storage failed.
    Failed,
}

/// Something that a process does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// The guest does something.
    Guest,
    /// The interval has passed.
    Checkpoint,
    /// A heartbeat, and a look whether the other side gave one.
    Heartbeat(u32),
    /// Looks for a standby.
    Seek,
    /// The next request of the gateway task.
    NextRequest,
    /// The next piece of the first copy.
    Base(u32),
    /// Watches the gateway's events.
    Watch,
    /// Asks for the takeover.
    TakeOver,
    /// A guest's request again.
    Again(u64),
}

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// A turn of the gateway.
    Turn,
    /// Something arrives.
    Arrive {
        from: Node,
        to: Node,
        process: Process,
        /// Of a connection with the gateway: which start of it.
        incarnation: u32,
        message: Message,
    },
    /// A process does something.
    Timer(Node, Process, Timer),
    /// Something goes wrong.
    Fault,
    /// The gateway starts again.
    StartGateway,
    /// A standby starts on a host.
    StartStandby(Node),
    /// An operator looks after things.
    Operator,
    /// The log has room again.
    MakeRoom,
    /// No more faults.
    Calm,
    /// The end.
    End,
}

/// A connection between source and standby.
#[derive(Debug)]
pub struct Link {
    /// Where the source is.
    pub source: (Node, Process),
    /// Where the standby is.
    pub standby: (Node, Process),
    /// Nothing arrives any more.
    pub broken: bool,
}

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
}

/// `epochgate protect`, or a guest that was taken over.
#[derive(Debug)]
pub struct Source {
    pub process: Process,
    pub id: String,
    pub generation: Generation,
    pub machine: SourceMachine,
    pub vm: Vm,
    /// Packets since the last cut.
    pub output: Vec<(u64, u64)>,
    /// Packets of the epochs that are sealed.
    pub held: VecDeque<(Epoch, Vec<(u64, u64)>)>,
    pub requests: VecDeque<coordinator::commit::Action>,
    pub at_gateway: AtGateway,
    pub capture: Option<Capture>,
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

/// Everything.
pub struct World<'a> {
    pub random: StdRng,
    pub trace: &'a mut Trace,
    pub planted: Option<Planted>,
    pub now: Micros,
    queue: BTreeMap<(Micros, u64), Event>,
    next_event: u64,
    next_number: u64,
    next_process: Process,
    next_link: u32,
    pub storage: StorageHost,
    pub gateway: Option<Gateway>,
    pub incarnation: u32,
    pub attached: BTreeMap<Process, Attached>,
    pub pending: Vec<Pending>,
    pub waiting: Vec<(Node, Process, Request)>,
    pub subscriptions: Vec<Subscription>,
    /// When guests that wait try again.
    pub look_again: Micros,
    turn_at: Option<Micros>,
    pub hosts: [Host; 2],
    pub links: BTreeMap<u32, Link>,
    /// The last arrival between two places: a connection keeps its order.
    order: [[Micros; 3]; 3],
    pub cut_until: [[Micros; 3]; 3],
    pub asleep_until: [Micros; 2],
    pub ledger: Ledger,
    pub faults: u32,
    pub max_faults: u32,
    pub kinds: Vec<Kind>,
    pub calm: bool,
    /// Answers to be lost.
    pub lose_answer: bool,
    /// A request to be carried out a second time, late.
    pub repeat_request: bool,
    /// A frame to be damaged.
    pub damage: bool,
    pub interval: Micros,
    pub suspicion: Micros,
    pub in_flight: usize,
    pub protect_again: bool,
    /// A standby protected the VM when the first fault came.
    pub was_protected: bool,
    /// What the page cache holds may never reach the disk.
    pub storage_failed: bool,
    /// Processes whose VM an operator gave up, or that nothing promises to keep.
    pub excused: bool,
    /// When somebody last saw a VM.
    pub vm_seen: Micros,
    pub done: bool,
}

/// Runs one seed.
///
/// # Errors
/// What must not be.
pub fn run(seed: u64, options: &Options, trace: &mut Trace) -> Result<(), Violation> {
    let mut random = StdRng::seed_from_u64(seed);
    let storage = StorageHost::new(&mut random, GroupMode::Sync, options.planted);
    let gateway = match storage.start(0) {
        Ok(gateway) => gateway,
        Err(error) => return violation!("the group does not open: {error:?}"),
    };
    let ledger = Ledger::new(gateway.stepped.standing());
    let max_faults = [0, 1, 1, 1, 2, 3, 4, 6][random.random_range(0..8)];
    let kinds = Kind::choose(&mut random);
    let mut world = World {
        interval: random.random_range(3_000..25_000),
        suspicion: random.random_range(30_000..120_000),
        in_flight: random.random_range(1..4),
        protect_again: random.random_bool(0.6),
        random,
        trace,
        planted: options.planted,
        now: 0,
        queue: BTreeMap::new(),
        next_event: 0,
        next_number: 0,
        next_process: 0,
        next_link: 0,
        storage,
        gateway: Some(gateway),
        incarnation: 0,
        attached: BTreeMap::new(),
        pending: Vec::new(),
        waiting: Vec::new(),
        subscriptions: Vec::new(),
        look_again: 0,
        turn_at: None,
        hosts: [Host::Down, Host::Down],
        links: BTreeMap::new(),
        order: [[0; 3]; 3],
        cut_until: [[0; 3]; 3],
        asleep_until: [0; 2],
        ledger,
        faults: 0,
        max_faults,
        kinds,
        calm: false,
        lose_answer: false,
        repeat_request: false,
        damage: false,
        was_protected: false,
        storage_failed: false,
        excused: false,
        vm_seen: 0,
        done: false,
    };
    world.start()?;
    while !world.done {
        let Some(((at, _), event)) = world.queue.pop_first() else {
            return violation!("nothing happens any more");
        };
        world.now = at;
        world.happen(event)?;
    }
    Ok(())
}

impl World<'_> {
    fn start(&mut self) -> Result<(), Violation> {
        self.trace.note(
            0,
            format_args!(
                "a protected VM: at most {} faults of {:?}",
                self.max_faults, self.kinds
            ),
        );
        self.start_standby(B);
        self.cold_start(A);
        let calm = self.random.random_range(300_000..700_000);
        self.at(calm, Event::Calm);
        if self.max_faults > 0 {
            let first = self.random.random_range(10_000..250_000);
            self.at(first, Event::Fault);
        }
        self.at(50_000, Event::Operator);
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Turn => {
                if self.turn_at == Some(self.now) {
                    self.turn_at = None;
                    self.gateway_turn()?;
                }
            }
            Event::Arrive {
                from,
                to,
                process,
                incarnation,
                message,
            } => self.arrive(from, to, process, incarnation, message)?,
            Event::Timer(node, process, timer) => {
                if self.is_asleep(node) {
                    let wake = self.asleep_until[node];
                    self.at(wake, Event::Timer(node, process, timer));
                } else if self.process_of(node) == Some(process) {
                    self.timer(node, process, timer)?;
                }
            }
            Event::Fault => self.fault()?,
            Event::StartGateway => self.start_gateway()?,
            Event::StartStandby(node) => {
                if matches!(self.hosts[node], Host::Down) {
                    self.start_standby(node);
                }
            }
            Event::Operator => self.operator()?,
            Event::MakeRoom => self.storage.disk.make_room(),
            Event::Calm => self.begin_calm(),
            Event::End => self.end()?,
        }
        self.schedule_turn();
        Ok(())
    }

    fn timer(&mut self, node: Node, process: Process, timer: Timer) -> Result<(), Violation> {
        match timer {
            Timer::Heartbeat(link) => self.heartbeat(node, process, link),
            Timer::TakeOver => self.ask_for_takeover(node),
            timer => self.source_timer(node, timer),
        }
    }

    fn arrive(
        &mut self,
        from: Node,
        to: Node,
        process: Process,
        incarnation: u32,
        message: Message,
    ) -> Result<(), Violation> {
        let held_until = if to < GATEWAY {
            self.asleep_until[to].max(self.cut_until[from][to])
        } else {
            self.cut_until[from][to]
        };
        if self.now < held_until {
            let arrive = Event::Arrive {
                from,
                to,
                process,
                incarnation,
                message,
            };
            self.at(held_until, arrive);
            return Ok(());
        }
        if to == GATEWAY {
            return self.gateway_receives(from, process, incarnation, message);
        }
        if self.process_of(to) != Some(process) {
            return Ok(());
        }
        match self.hosts[to] {
            Host::Source(_) => self.source_receives(to, message),
            Host::Standby(_) => self.standby_receives(to, message),
            Host::Down => Ok(()),
        }
    }

    /// Whether a mistake is made.
    pub fn makes(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    /// Something happens at a time.
    pub fn at(&mut self, at: Micros, event: Event) {
        self.next_event += 1;
        self.queue
            .insert((at.max(self.now), self.next_event), event);
    }

    /// A process does something after a while.
    pub fn later(&mut self, node: Node, process: Process, after: Micros, timer: Timer) {
        self.at(self.now + after, Event::Timer(node, process, timer));
    }

    /// Sends something to `process` on `to`; to the gateway: of that process.
    pub fn send(&mut self, from: Node, to: Node, process: Process, message: Message) {
        let slow = self.random.random_ratio(1, 50);
        let delay = self
            .random
            .random_range(if slow { 1_000..15_000 } else { 20..600 });
        let order = &mut self.order[from][to];
        *order = (self.now + delay).max(*order + 1);
        let at = *order;
        let incarnation = self.incarnation;
        let arrive = Event::Arrive {
            from,
            to,
            process,
            incarnation,
            message,
        };
        self.at(at, arrive);
    }

    /// A number that was never given out.
    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// A process that never was.
    pub fn fresh_process(&mut self) -> Process {
        self.next_process += 1;
        self.next_process
    }

    /// A link that never was.
    pub fn fresh_link(&mut self) -> u32 {
        self.next_link += 1;
        self.next_link
    }

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

    /// The gateway's turns come when they are due.
    fn schedule_turn(&mut self) {
        let due = self.gateway.as_ref().and_then(Gateway::due);
        if let Some(due) = due
            && self.turn_at.is_none_or(|at| due < at)
        {
            let due = due.max(self.now);
            self.turn_at = Some(due);
            self.at(due, Event::Turn);
        }
    }

    /// The gateway has no turns any more.
    pub fn forget_turn(&mut self) {
        self.turn_at = None;
    }

    fn begin_calm(&mut self) {
        self.calm = true;
        self.storage.disk.heal();
        self.storage.disk.die_after(None);
        (self.lose_answer, self.repeat_request, self.damage) = (false, false, false);
        self.cut_until = [[0; 3]; 3];
        self.asleep_until = [
            self.asleep_until[0].min(self.now),
            self.asleep_until[1].min(self.now),
        ];
        for node in [A, B] {
            if let Some(source) = self.source(node) {
                source.progress = 0;
            }
        }
        self.trace.note(self.now, format_args!("calm"));
        self.at(self.now + COOL_DOWN, Event::End);
    }
}
