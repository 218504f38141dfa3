//! Who is attached to something that can be taken away while clients use it, and how they are sent away. It knows nothing of what they are
//! attached to.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::export::Cutter;

/// The connections that are attached to one thing.
#[derive(Debug, Default)]
pub struct Attachments {
    clients: Mutex<Clients>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Clients {
    next: u64,
    cutters: BTreeMap<u64, Cutter>,
}

impl Attachments {
    /// Connections that are attached now.
    pub fn count(&self) -> usize {
        self.lock().cutters.len()
    }

    /// Counts one connection in, until the ticket is dropped.
    pub fn enter(self: &Arc<Self>, cutter: Cutter) -> Ticket {
        let mut clients = self.lock();
        let number = clients.next;
        clients.next += 1;
        clients.cutters.insert(number, cutter);
        Ticket {
            of: Arc::clone(self),
            number,
        }
    }

    /// Sends all clients away: requests under way are answered; what takes longer than `grace` is cut, and waited for as long again.
    /// True when all have left. New attachments must have been made impossible before.
    pub fn send_away(&self, grace: Duration) -> bool {
        self.each(Cutter::end);
        if self.wait_until_left(grace) {
            return true;
        }
        tracing::warn!(
            "requests are still under way on an export that ends; its connections are cut"
        );
        self.each(Cutter::cut);
        self.wait_until_left(grace)
    }

    fn each(&self, act: impl Fn(&Cutter)) {
        // A cutter never blocks, and never calls back into the export.
        self.lock().cutters.values().for_each(act);
    }

    fn wait_until_left(&self, limit: Duration) -> bool {
        let (clients, _) = self
            .left
            .wait_timeout_while(self.lock(), limit, |clients| !clients.cutters.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        clients.cutters.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Clients> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection.
#[derive(Debug)]
pub struct Ticket {
    of: Arc<Attachments>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.of.lock().cutters.remove(&self.number);
        self.of.left.notify_all();
    }
}
