//! What the gateway has done, in numbers, while it runs: counted by connections, scraped by Prometheus, shown by the status.
//!
//! ```text
//!   connection ─ Tally: plain numbers, per batch ─┐
//!   worker ───── Started: one request ────────────┴─▶ Meter: relaxed atomics, per export ─┬─▶ text ─▶ http
//!   committer ── one epoch ──────────────────────────▶ CommitMeter, per group ────────────┘
//! ```
//!
//! Counting must not be felt: a connection reads the clock when a batch has come and when it is answered, and touches what
//! it shares with others once per batch.

mod commits;
mod histogram;
pub(crate) mod http;
mod meter;
mod process;
mod tally;
pub(crate) mod text;

pub use commits::CommitMeter;
pub use http::{MetricsAddress, MetricsError, MetricsServer, Render};
pub use meter::{Kind, Meter};
pub(crate) use tally::{Started, Tally};
