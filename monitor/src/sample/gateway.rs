//! What the gateway that serves the VM's disks says of them.

use std::path::PathBuf;
use std::time::Duration;

use nbd_server::control::api::{DiskStatus, GroupStatus, ModeName};
use nbd_server::control::client::Client;

use super::Values;
use super::growth::{Growth, mean_ms, per};
use crate::signals::Signal;

/// Where the VM's disks come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayGroup {
    /// The gateway's control socket.
    pub control: PathBuf,
    /// The group of the VM: for Epochgate, the VM's name.
    pub group: String,
}

/// The gateway, and its counters of the last sample.
#[derive(Debug)]
pub(crate) struct Gateway {
    place: GatewayGroup,
    client: Option<Client>,
    counters: Growth<9>,
    epochs: Growth<3>,
}

impl Gateway {
    pub(crate) fn new(place: GatewayGroup) -> Self {
        Self {
            place,
            client: None,
            counters: Growth::default(),
            epochs: Growth::default(),
        }
    }

    /// `elapsed` in seconds. A gateway that does not answer within `limit` is missing, and asked again at the next sample.
    pub(crate) async fn sample(&mut self, elapsed: f64, limit: Duration, values: &mut Values) {
        match tokio::time::timeout(limit, self.ask()).await.ok().flatten() {
            Some(group) => self.take(&group, elapsed, values),
            None => {
                self.client = None;
                self.counters.forget();
                self.epochs.forget();
            }
        }
    }

    async fn ask(&mut self) -> Option<GroupStatus> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => {
                let client = Client::connect(&self.place.control).await.ok()?;
                self.client.insert(client).clone()
            }
        };
        client.group(&self.place.group).await.ok()
    }

    fn take(&mut self, group: &GroupStatus, elapsed: f64, values: &mut Values) {
        let sum = |of: fn(&DiskStatus) -> u64| group.disks.iter().map(of).sum::<u64>();
        let grown = self.counters.step([
            sum(|d| d.reads),
            sum(|d| d.writes),
            sum(|d| d.flushes),
            sum(|d| d.bytes_read),
            sum(|d| d.bytes_written),
            sum(|d| d.read_us),
            sum(|d| d.write_us),
            sum(|d| d.flush_us),
            sum(|d| d.errors),
        ]);
        if let Some(
            [
                reads,
                writes,
                flushes,
                read,
                written,
                read_us,
                write_us,
                flush_us,
                errors,
            ],
        ) = grown
        {
            values.set(Signal::GatewayReadOps, per(reads, elapsed));
            values.set(Signal::GatewayWriteOps, per(writes, elapsed));
            values.set(Signal::GatewayFlushOps, per(flushes, elapsed));
            values.set(Signal::GatewayReadBytes, per(read, elapsed));
            values.set(Signal::GatewayWriteBytes, per(written, elapsed));
            values.set(
                Signal::GatewayReadLatency,
                mean_ms(read_us.saturating_mul(1_000), reads),
            );
            values.set(
                Signal::GatewayWriteLatency,
                mean_ms(write_us.saturating_mul(1_000), writes),
            );
            values.set(
                Signal::GatewayFlushLatency,
                mean_ms(flush_us.saturating_mul(1_000), flushes),
            );
            values.set(Signal::GatewayFailed, per(errors, elapsed));
        }
        values.set(Signal::GatewayInFlight, sum(|d| d.in_flight) as f32);
        values.set(
            Signal::GatewayHeld,
            per(group.bytes_held, group.budget.max(1) as f64),
        );
        let totals = group.epochs;
        if let Some([epochs, bytes, blocks]) =
            self.epochs
                .step([totals.count, totals.bytes, totals.blocks])
            && (epochs > 0 || group.mode == ModeName::Async)
        {
            values.set(Signal::GatewayEpochBytes, per(bytes, elapsed));
            values.set(Signal::GatewayEpochBlocks, per(blocks, elapsed));
        }
    }
}
