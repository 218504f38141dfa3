//! The connections that are open: how many there may be in all, in their handshake, and of one client.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::access::Client;
use crate::connection::{Socket, Standing};
use crate::export::OpenRefused;
use crate::limits::Limits;

/// All connections of a server.
#[derive(Default)]
pub(super) struct Connections {
    open: Mutex<Open>,
    ended: Condvar,
}

#[derive(Default)]
struct Open {
    next: u64,
    sockets: HashMap<u64, Connection>,
    /// Those that were in their handshake when last looked at, oldest first.
    shaking: VecDeque<u64>,
    /// Connections that a client was admitted with.
    of_clients: HashMap<String, usize>,
}

struct Connection {
    socket: Weak<Socket>,
    standing: Arc<Standing>,
    client: Option<String>,
}

impl Open {
    /// The half-open connection that is dropped for the sake of a new one, if there are `max` of them.
    fn oldest_of(&mut self, max: usize) -> Option<Arc<Socket>> {
        let sockets = &self.sockets;
        let shakes = |id: &u64| sockets.get(id).is_some_and(|c| !c.standing.is_admitted());
        self.shaking.retain(shakes);
        if self.shaking.len() < max {
            return None;
        }
        let oldest = self.shaking.pop_front()?;
        self.sockets.get(&oldest)?.socket.upgrade()
    }

    fn release(&mut self, client: &str) {
        if let Some(count) = self.of_clients.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                self.of_clients.remove(client);
            }
        }
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> usize {
        self.lock().sockets.len()
    }

    /// Registers a connection, unless there are too many. When too many are in their handshake, the one that has been longest is cut:
    /// a flood of half-open connections drives out itself.
    pub(super) fn enter(
        self: &Arc<Self>,
        socket: &Arc<Socket>,
        limits: &Limits,
    ) -> Option<Entered> {
        let mut open = self.lock();
        if open.sockets.len() >= limits.max_connections {
            return None;
        }
        if let Some(oldest) = open.oldest_of(limits.max_handshakes) {
            oldest.cut();
        }
        let id = open.next;
        open.next += 1;
        let standing = Arc::new(Standing::default());
        open.shaking.push_back(id);
        let connection = Connection {
            socket: Arc::downgrade(socket),
            standing: Arc::clone(&standing),
            client: None,
        };
        open.sockets.insert(id, connection);
        Some(Entered {
            connections: Arc::clone(self),
            standing,
            id,
        })
    }

    pub(super) fn each(&self, act: impl Fn(&Socket, &Standing)) {
        for connection in self.lock().sockets.values() {
            if let Some(socket) = connection.socket.upgrade() {
                act(&socket, &connection.standing);
            }
        }
    }

    pub(super) fn wait_until_none(&self, limit: Duration) -> bool {
        let open = self.lock();
        let (open, _) = self
            .ended
            .wait_timeout_while(open, limit, |open| !open.sockets.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        open.sockets.is_empty()
    }
}

/// A connection's place among those that are open; dropped when its thread ends, however it ends.
pub(super) struct Entered {
    connections: Arc<Connections>,
    pub(super) standing: Arc<Standing>,
    id: u64,
}

impl Entered {
    /// Counts the connection as one of `client`, who is about to attach.
    pub(super) fn admit(&self, client: &Client, max: usize) -> Result<(), OpenRefused> {
        let name = client.to_string();
        let mut open = self.connections.lock();
        let Some(connection) = open.sockets.get_mut(&self.id) else {
            return Ok(());
        };
        if connection.client.as_ref() == Some(&name) {
            return Ok(());
        }
        // It has become somebody else by TLS.
        if let Some(before) = connection.client.take() {
            open.release(&before);
        }
        let count = open.of_clients.entry(name.clone()).or_default();
        if *count >= max {
            return Err(OpenRefused::Policy(format!(
                "{client} has {max} connections, as many as the limits of this server allow"
            )));
        }
        *count += 1;
        if let Some(connection) = open.sockets.get_mut(&self.id) {
            connection.client = Some(name);
        }
        Ok(())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        let gone = open.sockets.remove(&self.id);
        if let Some(client) = gone.and_then(|connection| connection.client) {
            open.release(&client);
        }
        drop(open);
        self.connections.ended.notify_all();
    }
}
