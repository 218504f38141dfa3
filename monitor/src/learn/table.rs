//! Windows with labels, of all recordings of a data set.

use xxhash_rust::xxh3::Xxh3;

use crate::features::Extractor;
use crate::recording::{ALSO_TAG, DataSet, Header};

/// After the fault begins a window is mostly of what was before: for so long it is neither normal nor faulty. The delay of a detection is
/// counted from the fault all the same.
pub const SETTLING_MS: u64 = 5_000;

/// After a fault is over, for so long.
const RECOVERY_MS: u64 = 20_000;

/// What a window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// No fault.
    Normal,
    /// The fault of its recording.
    Faulty,
    /// Between both: not learnt from, and counted nowhere.
    Between,
}

/// A window.
#[derive(Debug, Clone)]
pub struct Row {
    /// All features, in the order of [`crate::features::features`].
    pub values: Vec<f32>,
    /// Time in its recording.
    pub at_ms: u64,
    /// What it is.
    pub label: Label,
}

/// A recording.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its name.
    pub name: String,
    /// Its load; `unknown` if nobody said.
    pub load: String,
    /// Loads that were in it beside that: who is to judge one of them must not have learnt from this recording.
    pub also: Vec<String>,
    /// Its kind of fault.
    pub fault: Option<String>,
    /// When the fault began.
    pub fault_at_ms: Option<u64>,
    /// Recordings with the same seed are of one family: much about them is the same.
    pub family: Option<u64>,
    /// Its windows, in the order of time.
    pub rows: Vec<Row>,
    /// As recorded.
    pub interval_ms: u32,
}

/// All windows of a data set.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Its recordings.
    pub runs: Vec<Run>,
    /// What the data set is, whatever its files are called otherwise: 16 hexadecimal digits.
    pub hash: String,
    /// Hours of all recordings.
    pub hours: f64,
}

impl Table {
    /// Makes windows of all recordings.
    pub fn of(set: &DataSet) -> Self {
        let mut hash = Xxh3::new();
        let mut hours = 0.0;
        let mut runs = Vec::new();
        for entry in &set.entries {
            let (header, samples) = (entry.recording.header(), entry.recording.samples());
            hash.update(entry.name.as_bytes());
            let mut extractor = Extractor::default();
            let mut rows = Vec::new();
            for sample in samples {
                hash.update(&sample.at_ms.to_le_bytes());
                for (_, value) in sample.values.iter() {
                    hash.update(&value.unwrap_or(f32::NAN).to_le_bytes());
                }
                let Some(window) = extractor.push(sample) else {
                    continue;
                };
                rows.push(Row {
                    values: window.values,
                    at_ms: window.at_ms,
                    label: label(header, window.at_ms),
                });
            }
            #[allow(clippy::cast_precision_loss, reason = "some hours")]
            let length = entry.recording.duration_ms() as f64 / 3_600_000.0;
            hours += length;
            runs.push(Run {
                name: entry.name.clone(),
                load: header.load.clone().unwrap_or_else(|| "unknown".to_owned()),
                also: header.tags.get(ALSO_TAG).map_or_else(Vec::new, |names| {
                    names.split(',').map(str::to_owned).collect()
                }),
                fault: header.fault.as_ref().map(|fault| fault.kind.clone()),
                fault_at_ms: header.fault.as_ref().map(|fault| fault.at_ms),
                family: header.seed,
                rows,
                interval_ms: header.interval_ms,
            });
        }
        Self {
            runs,
            hash: format!("{:016x}", hash.digest()),
            hours,
        }
    }
}

fn label(header: &Header, at_ms: u64) -> Label {
    let Some(fault) = &header.fault else {
        return Label::Normal;
    };
    if at_ms < fault.at_ms {
        Label::Normal
    } else if fault.is_at(at_ms) {
        match at_ms < fault.at_ms.saturating_add(SETTLING_MS) {
            true => Label::Between,
            false => Label::Faulty,
        }
    } else {
        let over = fault.until_ms.unwrap_or(u64::MAX);
        match at_ms < over.saturating_add(RECOVERY_MS) {
            true => Label::Between,
            false => Label::Normal,
        }
    }
}
