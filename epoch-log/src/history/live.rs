//! What a history consists of right now: closed runs, oldest first, and the active one. Readers look at it while others change it.

use std::sync::Arc;

use super::HistoryError;
use super::format::{Boundary, Entry, Step};
use super::run::{ClosedRun, RunFile};
use crate::Epoch;

/// The run that grows.
#[derive(Debug)]
pub struct Active {
    /// Its file.
    pub file: Arc<RunFile>,
    /// Where it begins.
    pub from: Boundary,
    /// Steps that have ended, in order; `entries_end` counts from the beginning of the run.
    pub steps: Vec<Step>,
    /// All entries that are durable, in order; those behind the last step belong to one that ends later.
    pub entries: Vec<Entry>,
    /// The images may hold this epoch, or a part of it.
    pub through: Epoch,
}

impl Active {
    /// The newest boundary.
    pub fn last(&self) -> Boundary {
        self.steps.last().map_or(self.from, |step| step.to)
    }

    /// Entries up to the newest boundary.
    pub fn settled(&self) -> usize {
        self.steps
            .last()
            .map_or(0, |step| step.entries_end as usize)
    }

    /// The images are as they were at the newest boundary, or may just be on their way to the next.
    pub fn is_settled(&self) -> bool {
        self.settled() == self.entries.len()
    }
}

/// All of it.
#[derive(Debug)]
pub struct Live {
    /// Rises when runs are closed, merged or removed.
    pub version: u64,
    /// Closed runs, oldest first: each begins where the one before it ends.
    pub runs: Vec<Arc<ClosedRun>>,
    /// The run that grows.
    pub active: Active,
    /// The newest epoch that was applied: the images are that, and as long as nothing is saved after the newest boundary, that one is, too.
    pub applied: Epoch,
}

/// A point in time that can be gone back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// The epoch.
    pub epoch: Epoch,
    /// All epochs up to this one held the same.
    pub until: Epoch,
    /// When it was cut, in milliseconds since 1970.
    pub time_ms: u64,
}

/// A kept boundary, and up to which epoch it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// The boundary.
    pub boundary: Boundary,
    /// All epochs up to this one held the same.
    pub until: Epoch,
}

impl Point {
    /// What people are told of it.
    pub fn kept(&self) -> Kept {
        Kept {
            epoch: self.boundary.epoch,
            until: self.until,
            time_ms: self.boundary.time_ms,
        }
    }

    /// It is the state of this epoch.
    pub fn holds(&self, epoch: Epoch) -> bool {
        (self.boundary.epoch..=self.until).contains(&epoch)
    }
}

impl Live {
    /// Where the history begins.
    pub fn oldest(&self) -> Boundary {
        self.runs.first().map_or(self.active.from, |run| run.from)
    }

    /// Length of all files here of closed runs, in bytes.
    pub fn local_bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.local_bytes()).sum()
    }

    /// The kept boundaries that begin steps of run number `index`; the run that grows is the one behind the closed ones, and has the
    /// newest boundary as well.
    pub fn points(&self, index: usize) -> Result<Vec<Point>, HistoryError> {
        let (from, steps) = match self.runs.get(index) {
            Some(run) => (run.from, run.steps()?),
            None => (self.active.from, self.active.steps.clone()),
        };
        let mut points = Vec::with_capacity(steps.len() + 1);
        let mut at = from;
        for step in &steps {
            points.push(Point {
                boundary: at,
                until: step.from_until,
            });
            at = step.to;
        }
        if index >= self.runs.len() {
            let until = if self.active.is_settled() {
                self.applied.max(at.epoch)
            } else {
                at.epoch
            };
            points.push(Point {
                boundary: at,
                until,
            });
        }
        points.retain(|point| point.boundary.kept);
        Ok(points)
    }

    /// The run that has the steps from `epoch` on: the last that begins at or before it.
    pub fn run_of(&self, epoch: Epoch) -> usize {
        let before = self.runs.partition_point(|run| run.from.epoch <= epoch);
        if self.active.from.epoch <= epoch {
            self.runs.len()
        } else {
            before.saturating_sub(1)
        }
    }

    /// The point that is the state of `epoch`.
    pub fn resolve(&self, epoch: Epoch) -> Result<Point, HistoryError> {
        let index = self.run_of(epoch);
        // Runs may begin in the middle of a step, with the epoch of the boundary before.
        let mut before = None;
        for index in (0..=index).rev() {
            let points = self.points(index)?;
            let place = points.partition_point(|point| point.boundary.epoch <= epoch);
            if let Some(point) = place.checked_sub(1).and_then(|place| points.get(place)) {
                if point.holds(epoch) {
                    return Ok(*point);
                }
                before = Some(point.boundary.epoch);
                break;
            }
        }
        Err(HistoryError::NotKept {
            asked: format!("epoch {epoch}"),
            before,
            after: self.first_after(|point| point.boundary.epoch > epoch, index)?,
        })
    }

    /// The newest point at or before this time, in milliseconds since 1970.
    pub fn resolve_time(&self, time_ms: u64) -> Result<Point, HistoryError> {
        let begins_before = self.runs.partition_point(|run| run.from.time_ms <= time_ms);
        let last = if self.active.from.time_ms <= time_ms {
            self.runs.len()
        } else {
            begins_before.saturating_sub(1)
        };
        for index in (0..=last).rev() {
            let points = self.points(index)?;
            let place = points.partition_point(|point| point.boundary.time_ms <= time_ms);
            if let Some(point) = place.checked_sub(1).and_then(|place| points.get(place)) {
                return Ok(*point);
            }
        }
        Err(HistoryError::NotKept {
            asked: "a point at or before that time".to_owned(),
            before: None,
            after: self.first_after(|_| true, 0)?,
        })
    }

    fn first_after(
        &self,
        fits: impl Fn(&Point) -> bool,
        from: usize,
    ) -> Result<Option<Epoch>, HistoryError> {
        for index in from..=self.runs.len() {
            if let Some(point) = self.points(index)?.iter().find(|point| fits(point)) {
                return Ok(Some(point.boundary.epoch));
            }
        }
        Ok(None)
    }
}
