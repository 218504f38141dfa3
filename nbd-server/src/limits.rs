//! Every bound that the NBD server sets on its clients, each with its reason. Numbers only; nobody is refused here.

use std::time::Duration;

/// Bounds on connections and on what one connection may have under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once over all listeners. Each costs a thread and a receive buffer; further ones are closed at once.
    pub max_connections: usize,
    /// Time from accept to the end of the negotiation. A client that says nothing must not hold a thread.
    pub handshake_timeout: Duration,
    /// Requests of one connection that wait for storage or for the client to take its answer. QEMU sends 16 at most, fio up to its depth.
    pub max_in_flight: usize,
    /// Payload bytes of those requests, both ways: two of the greatest size, or one and many small ones. A request that is larger than this
    /// alone is served alone.
    pub max_in_flight_bytes: usize,
    /// Requests of one connection on workers at once. One client with slow storage must not take all workers.
    pub max_workers_per_connection: usize,
    /// Worker threads of the server. They start on demand and end when idle.
    pub max_workers: usize,
    /// How long a shutdown waits for answers under way before it cuts the connections.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            handshake_timeout: Duration::from_secs(10),
            max_in_flight: 128,
            max_in_flight_bytes: 64 << 20,
            max_workers_per_connection: 16,
            max_workers: 256,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
