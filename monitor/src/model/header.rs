//! What is known of a model: plain values with bounds.

use serde::{Deserialize, Serialize};

use super::error::ModelError;
use super::format::{MAX_FEATURES, MAX_KINDS, MAX_NAME_BYTES};
use crate::features::FEATURES_VERSION;
use crate::signals::SIGNALS_VERSION;

/// How it was learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Logistic regression.
    Logistic,
    /// A random forest.
    Forest,
    /// Gradient boosting.
    Boosted,
}

impl Method {
    /// All of them.
    pub const ALL: [Method; 3] = [Method::Logistic, Method::Forest, Method::Boosted];

    /// As in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Logistic => "logistic",
            Method::Forest => "forest",
            Method::Boosted => "boosted",
        }
    }
}

/// All that is known of a model but its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// [`FEATURES_VERSION`] when it was trained.
    pub features_version: u32,
    /// [`SIGNALS_VERSION`] when it was trained.
    pub signals_version: u32,
    /// How it was learnt.
    pub method: Method,
    /// Names of its features, in its order.
    pub features: Vec<String>,
    /// Kinds of fault that it knows.
    pub kinds: Vec<String>,
    /// When a window is faulty, and when a VM is.
    pub verdict: Thresholds,
    /// What it was trained on.
    pub training: Training,
}

/// From scores to labels and verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// A window is faulty from this score on.
    pub threshold: f32,
    /// A window counts for a verdict from this score on: higher, as a verdict may lead to an action.
    pub alarm: f32,
    /// So many windows must count...
    pub k: u32,
    /// ...of the last so many.
    pub n: u32,
}

/// Figures of the training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// xxh3 of names and samples of its recordings, as 16 hexadecimal digits.
    pub data_set: String,
    /// How many recordings.
    pub recordings: u32,
    /// Windows that were looked at.
    pub windows: u32,
    /// Hours of VM time in them.
    pub hours: f64,
    /// Seed of what was random.
    pub seed: u64,
    /// F1 by windows of all recordings, each judged by what was learnt from others.
    pub f1: f64,
    /// Area under the curve on the same.
    pub auc: f64,
}

impl Header {
    pub(super) fn check(&self) -> Result<(), ModelError> {
        let versions = [
            ("features", self.features_version, FEATURES_VERSION),
            ("signals", self.signals_version, SIGNALS_VERSION),
        ];
        for (what, found, known) in versions {
            if found != known {
                return Err(ModelError::Version { what, found, known });
            }
        }
        let limits = [
            (self.features.len(), MAX_FEATURES, "its features"),
            (self.kinds.len(), MAX_KINDS, "its kinds of fault"),
        ];
        for (count, limit, what) in limits {
            if count > limit {
                return Err(ModelError::TooLarge { what, limit });
            }
        }
        let invalid = |what: &str| Err(ModelError::Invalid(what.to_owned()));
        if self.features.is_empty() {
            return invalid("it has no features");
        }
        let names = self.features.iter().chain(&self.kinds);
        for name in names.chain([&self.training.data_set]) {
            if name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
                return invalid("a name that is too long or has a control character");
            }
        }
        let mut sorted: Vec<&String> = self.features.iter().collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|two| two[0] == two[1]) {
            return invalid("a feature that is there twice");
        }
        let Thresholds {
            threshold,
            alarm,
            k,
            n,
        } = self.verdict;
        if !threshold.is_finite() || !alarm.is_finite() {
            return invalid("a threshold that is no number");
        }
        if k == 0 || k > n || n > 1000 {
            return invalid("a verdict that can't be: 1 to n of n windows, n at most 1000");
        }
        let figures = [self.training.f1, self.training.auc, self.training.hours];
        if !figures.iter().all(|figure| figure.is_finite()) {
            return invalid("a figure that is no number");
        }
        Ok(())
    }
}
