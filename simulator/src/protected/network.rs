//! The network: what goes over it, how long that takes, and who gets it. Knows nothing of what the words mean.

use bytes::Bytes;
use coordinator::checkpoint_channel::Stamp as FrameStamp;
use rand::Rng;

use super::control::{Ask, Reply};
use super::guest::Request;
use super::hosts::Host;
use super::queue::Event;
use super::world::World;
use crate::Violation;
use crate::blocks::Stamp;

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

impl World<'_> {
    /// Something arrives, if nothing holds it back.
    pub fn arrive(
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
            self.queue.put_off(held_until, arrive);
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

    /// All cuts end, and whoever sleeps wakes: what waited for that happens now.
    pub fn wake_all(&mut self) {
        self.cut_until = Default::default();
        self.asleep_until = Default::default();
        self.queue.bring_forward(self.now);
    }
}
