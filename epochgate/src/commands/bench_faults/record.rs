//! What one run came to, as one line of JSON.

use serde::{Deserialize, Serialize};

use super::cost::Costs;
use super::run::Outcome;

/// One run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub cell: String,
    /// What was run, as the caller names it: a commit.
    pub build: String,
    pub seed: u64,
    /// How long it took.
    pub ms: u64,
    /// This machine was too busy, and the run says nothing.
    pub void: bool,
    /// None if it did not come to one.
    pub outcome: Option<Outcome>,
    pub failure: Option<String>,
    pub costs: Costs,
}

/// What a run says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Good,
    Bad,
    /// Nothing.
    Void,
}

impl Record {
    pub(super) fn verdict(&self) -> Verdict {
        if self.void {
            Verdict::Void
        } else if self.outcome.as_ref().is_some_and(Outcome::good) {
            Verdict::Good
        } else {
            Verdict::Bad
        }
    }

    /// What was wrong with it, in one line.
    pub(super) fn complaint(&self) -> String {
        let all = match (&self.failure, &self.outcome) {
            (Some(failure), _) => failure.clone(),
            (None, Some(outcome)) => format!(
                "{} mismatches; {}",
                outcome.mismatches,
                outcome.problems.join("; ")
            ),
            (None, None) => String::new(),
        };
        // What the parts said last is in the file of all runs.
        let first = all.lines().next().unwrap_or_default();
        first.replace('\t', " ")
    }
}

/// A cell's name without its instant.
pub(super) fn row(cell: &str) -> &str {
    cell.rsplit_once('/').map_or(cell, |(row, _)| row)
}
