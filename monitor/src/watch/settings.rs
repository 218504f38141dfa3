//! The file that says how a VM is watched. Values only.

use std::path::PathBuf;

use nbd_server::group::history::TimeSpan;
use serde::{Deserialize, Serialize};

use crate::actions::{ActionsConfig, Reach};
use crate::judge::Rule;
use crate::model::Thresholds;
use crate::recording::INTERVAL;

/// How a VM is watched: all of it may be left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Between two samples, 100 ms to 10 s.
    pub interval: TimeSpan,
    /// The model; none: the one that comes with Epochgate.
    pub model: Option<PathBuf>,
    /// Serves metrics for Prometheus here.
    pub metrics: Option<String>,
    /// Directory of the memory history, for `rewind` with memory.
    pub memory: Option<PathBuf>,
    /// Directory for the memory of a VM that is set back: each time one in it.
    pub state: Option<PathBuf>,
    /// What makes a verdict; none: as the model says.
    pub verdict: Option<Rule>,
    /// What is done about it.
    pub actions: ActionsConfig,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: TimeSpan(1_000),
            model: None,
            metrics: None,
            memory: None,
            state: None,
            verdict: None,
            actions: ActionsConfig::default(),
        }
    }
}

impl Settings {
    /// The first thing that is wrong, in words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, reach: &Reach) -> Result<(), String> {
        if !INTERVAL.contains(&self.interval.duration()) {
            return Err("the interval is between 100ms and 10s".to_owned());
        }
        if let Some(rule) = &self.verdict {
            rule.check()?;
        }
        self.actions.check(reach)
    }

    /// What makes a verdict, with a model that says this.
    #[must_use]
    pub fn rule(&self, model: &Thresholds) -> Rule {
        self.verdict
            .unwrap_or_else(|| Rule::k_of_n(model.k, model.n))
    }
}
