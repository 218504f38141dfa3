//! What happens, in which order. Knows nothing of what it means.

use std::collections::{BTreeMap, BTreeSet};

use super::network::{Message, Node, Process};
use crate::gateway::Micros;

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
    /// The seal again.
    SealAgain,
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

/// When, and which of those at the same time.
type Key = (Micros, u64);

/// Events by their time; those of the same time as they came in.
#[derive(Debug, Default)]
pub struct Queue {
    events: BTreeMap<Key, Event>,
    next: u64,
    /// Events that wait for a host to wake or for a cut to end.
    put_off: BTreeSet<Key>,
}

impl Queue {
    /// Something happens at a time.
    pub fn add(&mut self, at: Micros, event: Event) -> Key {
        self.next += 1;
        let key = (at, self.next);
        self.events.insert(key, event);
        key
    }

    /// Something that would have happened can't before `until`.
    pub fn put_off(&mut self, until: Micros, event: Event) {
        let key = self.add(until, event);
        self.put_off.insert(key);
    }

    /// The next event.
    pub fn pop(&mut self) -> Option<(Micros, Event)> {
        let (key, event) = self.events.pop_first()?;
        self.put_off.remove(&key);
        Some((key.0, event))
    }

    /// What was put off happens now, in its order.
    pub fn bring_forward(&mut self, now: Micros) {
        for key in std::mem::take(&mut self.put_off) {
            if let Some(event) = self.events.remove(&key) {
                self.add(now, event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seed 96687: a host that slept when the faults ended slept on, for longer than everything may take to settle.
    #[test]
    fn what_was_put_off_is_brought_forward_in_its_order() {
        let mut queue = Queue::default();
        queue.put_off(900, Event::MakeRoom);
        queue.put_off(900, Event::Calm);
        queue.put_off(50, Event::Fault);
        queue.add(300, Event::End);
        assert!(matches!(queue.pop(), Some((50, Event::Fault))));
        queue.bring_forward(200);
        assert!(matches!(queue.pop(), Some((200, Event::MakeRoom))));
        assert!(matches!(queue.pop(), Some((200, Event::Calm))));
        assert!(matches!(queue.pop(), Some((300, Event::End))));
        assert!(queue.pop().is_none());
    }
}
