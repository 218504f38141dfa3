//! Every bound that the NBD server sets on its clients, each with its reason. Numbers only; nobody is refused here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bounds on connections and on what one connection may have under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once over all listeners. Each costs a thread and a receive buffer; further ones are closed at once.
    pub max_connections: usize,
    /// Attached connections of one client: one certificate, else one user at unix sockets, one IP address or one vsock CID. Further ones are
    /// refused with the reason.
    pub max_connections_per_client: usize,
    /// Connections in their handshake. When there is one more, the oldest is cut: half-open connections drive out each other, and
    /// nobody who is attached.
    pub max_handshakes: usize,
    /// Time from accept to the end of the negotiation. A client that says nothing must not hold a thread.
    pub handshake_timeout: Duration,
    /// Requests of one connection that wait for storage or for the client to take its answer. QEMU sends 16 at most, fio up to its depth.
    pub max_in_flight: usize,
    /// Payload bytes of those requests, both ways: two of the greatest size, or one and many small ones. A request that is larger than this
    /// alone is served alone.
    pub max_in_flight_bytes: usize,
    /// Payload bytes of such requests over all connections, beyond the first MiB of each connection, which it has for itself. A
    /// connection may have as much of it as it leaves to others, so that no number of greedy ones takes all.
    pub max_in_flight_bytes_in_all: usize,
    /// Requests of one connection on workers at once. One client with slow storage must not take all workers.
    pub max_workers_per_connection: usize,
    /// Worker threads of the server. They start on demand and end when idle. With none, each connection waits for storage itself.
    pub max_workers: usize,
    /// At a stop: how long a client in its handshake may still ask and be told of the stop, before it is disconnected.
    pub shutdown_linger: Duration,
    /// How long a shutdown waits for answers under way before it cuts the connections.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_connections_per_client: 512,
            max_handshakes: 128,
            handshake_timeout: Duration::from_secs(10),
            max_in_flight: 128,
            max_in_flight_bytes: 64 << 20,
            max_in_flight_bytes_in_all: 512 << 20,
            max_workers_per_connection: 16,
            max_workers: 256,
            shutdown_linger: Duration::from_secs(1),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// The pace that an export is held to, over all its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Requests per second.
    pub requests: Option<u64>,
    /// Bytes read and written per second.
    pub bytes: Option<u64>,
}

/// The keys under `[limits]`. What is left out is as in [`Limits::default`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Connections in all.
    pub connections: Option<usize>,
    /// Attached connections of one client.
    pub connections_per_client: Option<usize>,
    /// Connections in their handshake.
    pub handshakes: Option<usize>,
    /// Seconds that a handshake may take.
    pub handshake_seconds: Option<u64>,
    /// Requests of one connection under way.
    pub requests_per_connection: Option<usize>,
    /// MiB of payload of one connection under way.
    pub mib_per_connection: Option<usize>,
    /// MiB of payload under way in all.
    pub mib_in_all: Option<usize>,
}

impl LimitsConfig {
    /// The limits that are meant.
    ///
    /// # Errors
    /// The name of a key that is 0: nobody would be served.
    pub fn limits(&self) -> Result<Limits, &'static str> {
        let default = Limits::default();
        let number = |key, value: Option<usize>, default| match value {
            Some(0) => Err(key),
            value => Ok(value.unwrap_or(default)),
        };
        let mib = |key, value: Option<usize>, default| {
            number(key, value.map(|mib| mib.saturating_mul(1 << 20)), default)
        };
        Ok(Limits {
            max_connections: number("connections", self.connections, default.max_connections)?,
            max_connections_per_client: number(
                "connections_per_client",
                self.connections_per_client,
                default.max_connections_per_client,
            )?,
            max_handshakes: number("handshakes", self.handshakes, default.max_handshakes)?,
            handshake_timeout: match self.handshake_seconds {
                Some(0) => return Err("handshake_seconds"),
                Some(seconds) => Duration::from_secs(seconds),
                None => default.handshake_timeout,
            },
            max_in_flight: number(
                "requests_per_connection",
                self.requests_per_connection,
                default.max_in_flight,
            )?,
            max_in_flight_bytes: mib(
                "mib_per_connection",
                self.mib_per_connection,
                default.max_in_flight_bytes,
            )?,
            max_in_flight_bytes_in_all: mib(
                "mib_in_all",
                self.mib_in_all,
                default.max_in_flight_bytes_in_all,
            )?,
            ..default
        })
    }
}
