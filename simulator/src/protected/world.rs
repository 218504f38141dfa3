//! Everything at once: hosts, network, clock. Takes one event after the other from the queue and gives it to the part that it is for. What the
//! parts do with it is in `gateway_side`, `source_side` and `standby_side`, what goes wrong in `faults`.

use std::collections::BTreeMap;

use nbd_server::group::GroupMode;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::control::{Pending, Subscription};
use super::disks::{Attached, Flushing};
use super::faults::{COOL_DOWN, Kind, Repeat};
use super::guest::Request;
use super::hosts::Host;
use super::ledger::Ledger;
use super::network::{A, B, Link, Node, Process};
use super::queue::{Event, Queue, Timer};
use crate::gateway::{Gateway, Micros, StorageHost};
use crate::planted::Planted;
use crate::trace::Trace;
use crate::{Options, Violation, violation};

/// Everything.
pub struct World<'a> {
    pub random: StdRng,
    pub trace: &'a mut Trace,
    pub planted: Option<Planted>,
    pub now: Micros,
    pub queue: Queue,
    next_number: u64,
    next_process: Process,
    next_link: u32,
    pub storage: StorageHost,
    pub gateway: Option<Gateway>,
    pub incarnation: u32,
    pub attached: BTreeMap<Process, Attached>,
    pub pending: Vec<Pending>,
    pub waiting: Vec<(Node, Process, Request)>,
    /// Flushes that the group commits for.
    pub flushing: Vec<Flushing>,
    pub subscriptions: Vec<Subscription>,
    /// When guests that wait try again.
    pub look_again: Micros,
    turn_at: Option<Micros>,
    pub hosts: [Host; 2],
    pub links: BTreeMap<u32, Link>,
    /// The last arrival between two places: a connection keeps its order.
    pub order: [[Micros; 3]; 3],
    pub cut_until: [[Micros; 3]; 3],
    pub asleep_until: [Micros; 2],
    pub ledger: Ledger,
    pub faults: u32,
    pub max_faults: u32,
    pub kinds: Vec<Kind>,
    pub calm: bool,
    /// Answers to be lost.
    pub lose_answer: bool,
    /// A request to be carried out late, a second time or for nobody.
    pub repeat: Option<Repeat>,
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
    let storage = StorageHost::new(&mut random, seed, GroupMode::Sync, options);
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
        queue: Queue::default(),
        next_number: 0,
        next_process: 0,
        next_link: 0,
        storage,
        gateway: Some(gateway),
        incarnation: 0,
        attached: BTreeMap::new(),
        pending: Vec::new(),
        waiting: Vec::new(),
        flushing: Vec::new(),
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
        repeat: None,
        damage: false,
        was_protected: false,
        storage_failed: false,
        excused: false,
        vm_seen: 0,
        done: false,
    };
    world.start()?;
    while !world.done {
        let Some((at, event)) = world.queue.pop() else {
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
                    self.queue.put_off(wake, Event::Timer(node, process, timer));
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

    /// Whether a mistake is made.
    pub fn makes(&self, planted: Planted) -> bool {
        self.planted == Some(planted)
    }

    /// Something happens at a time.
    pub fn at(&mut self, at: Micros, event: Event) {
        self.queue.add(at.max(self.now), event);
    }

    /// A process does something after a while.
    pub fn later(&mut self, node: Node, process: Process, after: Micros, timer: Timer) {
        self.at(self.now + after, Event::Timer(node, process, timer));
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
        (self.lose_answer, self.repeat, self.damage) = (false, None, false);
        self.wake_all();
        for node in [A, B] {
            if let Some(source) = self.source(node) {
                source.progress = 0;
            }
        }
        self.trace.note(self.now, format_args!("calm"));
        self.at(self.now + COOL_DOWN, Event::End);
    }
}
