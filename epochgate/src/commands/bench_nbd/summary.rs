//! From samples to figures: medians, and ratios against the best peer and the floor. Arithmetic only.

use serde::Serialize;

use super::plan::Series;
use super::sample::{Client, Sample};
use crate::bench::ratio::Spread;
use crate::bench::server::{Kind, Role};

/// All servers in one profile.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Block {
    pub client: Client,
    pub profile: &'static str,
    pub title: &'static str,
    pub connections: usize,
    pub depth: Option<usize>,
    /// The peer with the most requests per second.
    pub best_peer: Option<&'static str>,
    pub servers: Vec<Row>,
}

/// One server in one profile; medians over the repetitions.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub server: &'static str,
    #[serde(skip)]
    pub kind: Kind,
    pub iops: f64,
    pub mb_per_second: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Requests per second against the best peer's.
    pub against_best_peer: Option<Spread>,
    /// The same against nbdkit's null plugin.
    pub against_null: Option<Spread>,
    /// Median latency against that of the peer whose median latency is lowest.
    pub latency_against_best: Option<Spread>,
    /// CPU seconds of the server for a million requests.
    pub cpu_per_million: Option<f64>,
    /// The same against the peer that needs least.
    pub cpu_against_best: Option<Spread>,
    /// CPU seconds of the server for a GiB.
    pub cpu_per_gib: Option<f64>,
    pub drain_s: Option<f64>,
    pub verified_bytes: u64,
    pub samples: Vec<Sample>,
}

/// The blocks of all series, which stand block by block.
pub(crate) fn blocks(series: &[Series]) -> Vec<Block> {
    series
        .chunk_by(|a, b| {
            (a.client, a.profile.name, a.connections) == (b.client, b.profile.name, b.connections)
        })
        .filter_map(block)
        .collect()
}

fn block(series: &[Series]) -> Option<Block> {
    let first = series.first()?;
    let peers = || {
        series
            .iter()
            .filter(|series| series.server.role() == Role::Peer)
    };
    let best = peers().max_by(|a, b| median(a, iops).total_cmp(&median(b, iops)));
    let quickest = peers().min_by(|a, b| median(a, p50).total_cmp(&median(b, p50)));
    let thriftiest = peers()
        .filter(|series| series.samples.iter().all(|s| cpu_per_request(s) > 0.0))
        .min_by(|a, b| median(a, cpu_per_request).total_cmp(&median(b, cpu_per_request)));
    let null = series
        .iter()
        .find(|series| series.server == Kind::NbdkitNull);
    let rows = series.iter().map(|series| {
        let against = |other: Option<&Series>, figure: fn(&Sample) -> f64| {
            Spread::of_ratios(&values(series, figure), &values(other?, figure))
        };
        let has_cpu = series.samples.iter().any(|s| s.server_cpu_s.is_some());
        let drains = series.samples.iter().filter_map(|s| s.drain_s);
        Row {
            server: series.server.name(),
            kind: series.server,
            iops: median(series, iops),
            mb_per_second: median(series, |s| s.bytes_per_second / 1e6),
            mean_us: median(series, |s| s.latency_us.mean),
            p50_us: median(series, p50),
            p99_us: median(series, |s| s.latency_us.p99),
            against_best_peer: against(best, iops),
            against_null: against(null, iops),
            latency_against_best: against(quickest, p50),
            cpu_per_million: has_cpu.then(|| median(series, cpu_per_request) * 1e6),
            cpu_against_best: against(thriftiest, cpu_per_request).filter(|_| has_cpu),
            cpu_per_gib: has_cpu.then(|| median(series, cpu_per_gib)),
            drain_s: Spread::of(drains).map(|spread| spread.median),
            verified_bytes: series.samples.iter().map(|s| s.verified).sum(),
            samples: series.samples.clone(),
        }
    });
    Some(Block {
        client: first.client,
        profile: first.profile.name,
        title: first.profile.title,
        connections: first.connections,
        depth: match first.client {
            Client::Native => first.profile.native.map(|native| native.depth()),
            Client::Fio => None,
        },
        best_peer: best.map(|series| series.server.name()),
        servers: rows.collect(),
    })
}

fn iops(sample: &Sample) -> f64 {
    sample.iops
}

fn p50(sample: &Sample) -> f64 {
    sample.latency_us.p50
}

#[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn cpu_per_request(sample: &Sample) -> f64 {
    sample.server_cpu_s.unwrap_or(0.0) / sample.requests.max(1) as f64
}

#[allow(clippy::cast_precision_loss, reason = "shown with a few digits")]
fn cpu_per_gib(sample: &Sample) -> f64 {
    sample.server_cpu_s.unwrap_or(0.0) / (sample.bytes.max(1) as f64 / (1u64 << 30) as f64)
}

fn values(series: &Series, figure: fn(&Sample) -> f64) -> Vec<f64> {
    series.samples.iter().map(figure).collect()
}

fn median(series: &Series, figure: fn(&Sample) -> f64) -> f64 {
    Spread::of(values(series, figure)).map_or(0.0, |spread| spread.median)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::profile;
    use crate::load::Latency;

    fn series(server: Kind, iops: &[f64], cpu: f64) -> Series {
        let sample = |iops: &f64| Sample {
            iops: *iops,
            bytes_per_second: iops * 4096.0,
            latency_us: Latency {
                mean: 1e6 / iops,
                p50: 1e6 / iops,
                p99: 2e6 / iops,
            },
            drain_s: None,
            server_cpu_s: Some(cpu),
            requests: 1_000_000,
            bytes: 4_096_000_000,
            verified: 5,
            client_cpu_s: None,
        };
        Series {
            client: Client::Native,
            profile: profile::find("random-read").unwrap(),
            connections: 1,
            server,
            samples: iops.iter().map(sample).collect(),
        }
    }

    #[test]
    fn ratios_are_against_the_best_peer_of_the_same_repetition() {
        let all = [
            series(Kind::Async, &[200.0, 300.0, 100.0], 1.0),
            series(Kind::NbdkitFile, &[100.0, 100.0, 100.0], 4.0),
            series(Kind::QemuThreads, &[50.0, 200.0, 50.0], 2.0),
            // Stores nothing, so it is not the best peer, however fast.
            series(Kind::NbdkitNull, &[400.0, 400.0, 400.0], 0.5),
        ];
        let blocks = blocks(&all);
        assert_eq!(blocks.len(), 1);
        let block = &blocks[0];
        assert_eq!(block.best_peer, Some("nbdkit-file"));
        let ours = &block.servers[0];
        let ratio = ours.against_best_peer.unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (2.0, 1.0, 3.0));
        assert_eq!(ours.against_null.unwrap().median, 0.5);
        assert_eq!(ours.latency_against_best.unwrap().median, 0.5);
        assert_eq!(ours.cpu_against_best.unwrap().median, 0.5);
        assert_eq!(ours.cpu_per_million, Some(1.0));
        assert_eq!(ours.verified_bytes, 15);
    }
}
