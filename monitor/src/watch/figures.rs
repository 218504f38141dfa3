//! What has happened since a watch began, as numbers that only grow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Event, Outcome};

/// Counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Windows that were judged.
    pub windows: u64,
    /// Verdicts, by health.
    pub verdicts: BTreeMap<String, u64>,
    /// Actions, by name and outcome.
    pub actions: BTreeMap<String, BTreeMap<Outcome, u64>>,
    /// How often the VM could not be reached any more.
    pub lost: u64,
}

impl Figures {
    pub(super) fn count(&mut self, event: &Event) {
        match event {
            Event::Watching { .. } => {}
            Event::Lost { .. } => self.lost += 1,
            Event::Verdict(verdict) => {
                let health = verdict.health.name().to_owned();
                *self.verdicts.entry(health).or_default() += 1;
            }
            Event::Action {
                action, outcome, ..
            } => {
                let of = self.actions.entry((*action).to_owned()).or_default();
                *of.entry(*outcome).or_default() += 1;
            }
        }
    }
}
