//! The page that Prometheus reads: what the meters, the groups and the system say, in the text format of OpenMetrics.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::commits::CommitMeter;
use super::histogram::Reading;
use super::meter::{Kind, Meter};
use super::process::Process;
use crate::group::Figures;

const NANOS_PER_SECOND: f64 = 1e9;

/// What a page is made of.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// NBD connections in all, attached or not.
    pub connections: u64,
    /// Exports and disks of groups.
    pub exports: Vec<ExportFigures>,
    /// Groups.
    pub groups: Vec<GroupFigures>,
}

/// One group.
#[derive(Debug)]
pub(crate) struct GroupFigures {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub figures: Figures,
    /// What became durable.
    pub commits: Arc<CommitMeter>,
}

/// One export.
#[derive(Debug)]
pub(crate) struct ExportFigures {
    /// What a client asks for.
    pub name: String,
    /// The group of a disk; empty for an export outside of groups.
    pub group: String,
    /// Bytes.
    pub size: u64,
    /// What was done.
    pub meter: Arc<Meter>,
}

/// Takes a [`Snapshot`] for each page.
pub(crate) trait Source: fmt::Debug + Send + Sync + 'static {
    /// How things stand. May block.
    fn snapshot(&self) -> Snapshot;
}

/// The whole page.
pub(crate) fn page(source: &Arc<dyn Source>) -> String {
    let mut registry = Registry::with_prefix("epochgate");
    registry.register_collector(Box::new(Page(Arc::clone(source))));
    let mut text = String::with_capacity(16 << 10);
    if text::encode(&mut text, &registry).is_err() {
        // Writing to a string fails only if one of our own encoders does.
        tracing::error!("the metrics can't be written");
    }
    text
}

#[derive(Debug)]
struct Page(Arc<dyn Source>);

/// Labels of one export.
type ExportLabels<'a> = [(&'static str, &'a str); 2];

impl ExportFigures {
    fn labels(&self) -> ExportLabels<'_> {
        [("export", &self.name), ("group", &self.group)]
    }
}

impl GroupFigures {
    fn labels(&self) -> [(&'static str, &str); 1] {
        [("group", &self.name)]
    }
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let snapshot = self.0.snapshot();
        let mut to = Encoder(encoder);
        to.process(snapshot.connections)?;
        to.exports(&snapshot.exports)?;
        to.groups(&snapshot.groups)
    }
}

struct Encoder<'a>(DescriptorEncoder<'a>);

impl Encoder<'_> {
    fn process(&mut self, connections: u64) -> fmt::Result {
        let process = Process::now();
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        self.0
            .encode_descriptor("build", "The running version", None, MetricType::Info)?
            .encode_info(&version)?;
        self.plain(
            "connections",
            "Open NBD connections, attached or not",
            None,
            connections,
        )?;
        self.plain(
            "process_resident_memory",
            "Resident memory of the gateway",
            Some(&Unit::Bytes),
            process.resident_bytes,
        )?;
        self.plain(
            "process_threads",
            "Threads of the gateway",
            None,
            process.threads,
        )?;
        self.0
            .encode_descriptor(
                "process_cpu",
                "Time that the gateway spent on processors",
                Some(&Unit::Seconds),
                MetricType::Counter,
            )?
            .encode_counter::<NoLabelSet, _, f64>(&process.cpu_seconds, None)
    }

    fn plain(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        self.0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?
            .encode_gauge(&signed(value))
    }

    fn exports(&mut self, exports: &[ExportFigures]) -> fmt::Result {
        self.gauges(
            exports,
            "export_size",
            "Size of the disk",
            Some(&Unit::Bytes),
            |e| e.size,
        )?;
        self.gauges(
            exports,
            "export_connections",
            "Attached NBD connections",
            None,
            |e| e.meter.connections(),
        )?;
        self.gauges(
            exports,
            "requests_in_flight",
            "Requests that wait for storage",
            None,
            |e| e.meter.in_flight(),
        )?;
        let mut family = self.0.encode_descriptor(
            "request",
            "Bytes of the disk that successful requests have dealt with",
            Some(&Unit::Bytes),
            MetricType::Counter,
        )?;
        for export in exports {
            for kind in Kind::ALL.into_iter().filter(|kind| kind.has_range()) {
                let labels = of_kind(export, kind);
                family
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, f64>(&export.meter.bytes(kind), None)?;
            }
        }
        let mut family = self.0.encode_descriptor(
            "request_errors",
            "Requests that were answered with an error",
            None,
            MetricType::Counter,
        )?;
        for export in exports {
            for (error, count) in export.meter.errors() {
                let [name, group] = export.labels();
                count_of(&mut family, &[name, group, ("error", error)], count)?;
            }
        }
        let mut family = self.0.encode_descriptor(
            "request_duration",
            "Time from the receipt of requests to their answers",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for export in exports {
            for kind in Kind::ALL {
                let latencies = export.meter.latencies(kind);
                // Kinds of requests that have not come are left out: a histogram has 22 lines.
                if latencies.count() > 0 {
                    let labels = of_kind(export, kind);
                    histogram(&mut family, &labels, &latencies, NANOS_PER_SECOND)?;
                }
            }
        }
        Ok(())
    }

    fn gauges(
        &mut self,
        exports: &[ExportFigures],
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: impl Fn(&ExportFigures) -> u64,
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, unit, MetricType::Gauge)?;
        for export in exports {
            let labels = export.labels();
            family
                .encode_family(&labels)?
                .encode_gauge(&signed(value(export)))?;
        }
        Ok(())
    }

    fn groups(&mut self, groups: &[GroupFigures]) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        type Value = fn(&Figures) -> u64;
        let gauges: [(&str, &str, Option<&Unit>, Value); 14] = [
            (
                "group_generation",
                "Rises each time the disks change hands",
                None,
                |f| f.generation,
            ),
            (
                "group_async",
                "1 in async mode, 0 in sync mode",
                None,
                |f| f.holds.into(),
            ),
            ("group_held", "Memory that epochs hold", bytes, |f| {
                f.held_bytes
            }),
            ("group_budget", "Memory that epochs may hold", bytes, |f| {
                f.budget_bytes
            }),
            ("group_epoch_sealed", "The newest sealed epoch", None, |f| {
                f.sealed
            }),
            (
                "group_epoch_committed",
                "The newest committed epoch",
                None,
                |f| f.committed,
            ),
            (
                "group_epoch_applied",
                "The newest epoch in the images",
                None,
                |f| f.applied,
            ),
            (
                "group_log_backlog",
                "Guest data that is sealed and not committed",
                bytes,
                |f| f.log_backlog_bytes,
            ),
            (
                "group_apply_backlog",
                "Guest data that is committed and not in the images",
                bytes,
                |f| f.apply_backlog_bytes,
            ),
            (
                "group_log",
                "What the epoch log takes on its disk",
                bytes,
                |f| f.log_bytes,
            ),
            (
                "group_history",
                "What the history takes on its disk",
                bytes,
                |f| f.history_bytes,
            ),
            (
                "group_history_cold",
                "What the history takes in cold storage",
                bytes,
                |f| f.history_cold_bytes,
            ),
            (
                "group_history_oldest_epoch",
                "The oldest epoch that can be gone back to",
                None,
                |f| f.history_oldest,
            ),
            (
                "group_history_frozen",
                "Whether nothing of the history goes for its age or size",
                None,
                |f| f.history_frozen.into(),
            ),
        ];
        for (name, help, unit, value) in gauges {
            let mut family = self
                .0
                .encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for group in groups {
                family
                    .encode_family(&group.labels())?
                    .encode_gauge(&signed(value(&group.figures)))?;
            }
        }
        self.commits(groups)
    }

    fn commits(&mut self, groups: &[GroupFigures]) -> fmt::Result {
        let mut family = self.0.encode_descriptor(
            "group_commit_duration",
            "Time from the request for COMMIT 2 to the durable commit record",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        for group in groups {
            let durations = group.commits.durations();
            histogram(&mut family, &group.labels(), &durations, NANOS_PER_SECOND)?;
        }
        let mut family = self.0.encode_descriptor(
            "group_epoch",
            "Guest data in the epochs that were committed",
            Some(&Unit::Bytes),
            MetricType::Histogram,
        )?;
        for group in groups {
            histogram(&mut family, &group.labels(), &group.commits.sizes(), 1.0)?;
        }
        let mut family = self.0.encode_descriptor(
            "group_epoch_blocks",
            "Blocks of 4 KiB with guest data in the epochs that were committed",
            None,
            MetricType::Counter,
        )?;
        for group in groups {
            count_of(&mut family, &group.labels(), group.commits.blocks())?;
        }
        Ok(())
    }
}

fn of_kind(export: &ExportFigures, kind: Kind) -> [(&'static str, &str); 3] {
    let [name, group] = export.labels();
    [name, group, ("operation", kind.label())]
}

fn count_of(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    count: u64,
) -> fmt::Result {
    family
        .encode_family(labels)?
        .encode_counter::<NoLabelSet, _, f64>(&count, None)
}

/// `unit`: so many of what was counted make one of what is shown.
#[allow(clippy::cast_precision_loss, reason = "shown to people")]
fn histogram<const B: usize>(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    reading: &Reading<B>,
    unit: f64,
) -> fmt::Result {
    let bounds = reading.bounds.iter().map(|bound| *bound as f64 / unit);
    let buckets: Vec<_> = bounds.chain([f64::INFINITY]).zip(reading.buckets).collect();
    let sum = reading.sum as f64 / unit;
    family
        .encode_family(labels)?
        .encode_histogram::<NoLabelSet>(sum, reading.count(), &buckets, None)
}

/// The encoder knows no unsigned gauges.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
