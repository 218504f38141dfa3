//! What keeps a history in its bounds: trims what is too old or too much, thins what is old enough, spares what is pinned or looked at.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use super::batch::MAX_BATCH_RECORDS;
use super::merge::Merge;
use super::retention::{PINS_ONLY, Retention};
use super::run::{ClosedRun, failed};
use super::{History, HistoryError};
use crate::Epoch;

/// Most entries that are merged at once: bounds the memory that it takes, about 100 bytes each.
const MERGE_ENTRIES: u64 = 4 * MAX_BATCH_RECORDS as u64;
/// Most bytes of files that are merged at once, in runs.
const MERGE_RUNS: usize = 32;
/// So many runs are worth a merge; fewer wait for others.
const WORTH: usize = 4;

/// What maintenance has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Runs that were removed from the end.
    pub trimmed: usize,
    /// The history begins here now, if it was trimmed.
    pub oldest: Option<Epoch>,
    /// It was trimmed for the sake of disk space, earlier than its age and size would have it.
    pub for_space: bool,
    /// Runs that were merged into one.
    pub merged: usize,
    /// The time was over in which nothing was to go.
    pub thawed: bool,
}

impl Maintained {
    /// There was nothing to do.
    #[must_use]
    pub const fn is_nothing(&self) -> bool {
        self.trimmed == 0 && self.merged == 0 && !self.thawed
    }
}

impl History {
    /// Does some of what is due: to be called from time to time, and again at once while there was something. One call takes no longer than a
    /// merge of bounded size.
    ///
    /// # Errors
    /// [`HistoryError`]: nothing is lost, and it is due again.
    pub fn maintain(&self, now_ms: u64, retention: &Retention) -> Result<Maintained, HistoryError> {
        let _alone = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let thawed = self.frozen().is_some_and(|frozen| frozen.is_over(now_ms));
        if thawed {
            self.thaw()?;
        }
        let frozen = self.frozen().is_some();
        self.close_old_run(now_ms, retention)?;
        let mut done = match frozen {
            // Room on the disk is all that counts then.
            true => self.trim(
                now_ms,
                &Retention {
                    min_free: retention.min_free,
                    ..Retention::unlimited()
                },
            )?,
            false => self.trim(now_ms, retention)?,
        };
        if done.trimmed == 0 && !frozen {
            done.merged = self.thin(now_ms, retention)?;
        }
        done.thawed = thawed;
        Ok(done)
    }

    /// Frees space at once, where even what is new finds none: the oldest run goes, if nobody needs it, cold ones first, which free little.
    /// False: there is none.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn trim_for_space(&self) -> Result<bool, HistoryError> {
        let _alone = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.remove_oldest(|_| true)
    }

    fn close_old_run(&self, now_ms: u64, retention: &Retention) -> Result<(), HistoryError> {
        let old = {
            let live = self.live();
            let age = now_ms.saturating_sub(live.active.from.time_ms);
            !live.active.entries.is_empty() && age > retention.longest_run_ms()
        };
        if !old {
            return Ok(());
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.roll(&mut writer)
    }

    fn trim(&self, now_ms: u64, retention: &Retention) -> Result<Maintained, HistoryError> {
        let mut done = Maintained::default();
        let mut bytes = {
            let live = self.live();
            live.local_bytes()
        } + self.active_bytes();
        loop {
            let short = self.is_short_of_space(retention);
            let mut size = 0;
            let removed = self.remove_oldest(|run| {
                size = run.local_bytes();
                let by_age = now_ms.saturating_sub(run.to().time_ms) > retention.age_ms;
                // To remove what is cold would free nearly nothing here, and take everything.
                let by_size = bytes > retention.bytes && !run.is_cold();
                let for_space = short && !run.is_cold();
                done.for_space |= !by_age && !by_size && for_space;
                by_age || by_size || for_space
            })?;
            if !removed {
                break;
            }
            bytes = bytes.saturating_sub(size);
            done.trimmed += 1;
        }
        if done.trimmed > 0 {
            done.oldest = Some(self.live().oldest().epoch);
        }
        Ok(done)
    }

    /// Less of the disk is free than is to stay so.
    pub(super) fn is_short_of_space(&self, retention: &Retention) -> bool {
        retention.min_free > 0
            && self
                .free_space()
                .is_some_and(|free| free < retention.min_free)
    }

    /// Removes the oldest run if it is closed, `unwanted`, and nothing before its end is pinned or looked at.
    fn remove_oldest(
        &self,
        unwanted: impl FnOnce(&ClosedRun) -> bool,
    ) -> Result<bool, HistoryError> {
        let run = {
            let mut live = self.change();
            let needed = self.protected().first().copied().unwrap_or(u64::MAX);
            let goes = live
                .runs
                .first()
                .is_some_and(|run| run.to().seq <= needed && unwanted(run));
            if !goes {
                return Ok(false);
            }
            live.version += 1;
            live.runs.remove(0)
        };
        self.discard(&run)?;
        Ok(true)
    }

    /// Removes the file of a run.
    pub(super) fn remove_file(&self, run: &ClosedRun) -> Result<(), HistoryError> {
        let removed = self.dir().remove(run.file.file.name());
        removed.map_err(|source| failed("remove a run of", run.file.path.clone(), source))
    }

    /// Merges the first runs that are due for it. Returns how many.
    fn thin(&self, now_ms: u64, retention: &Retention) -> Result<usize, HistoryError> {
        let (place, runs, tier) = {
            let live = self.live();
            let Some(found) = candidates(&live.runs, now_ms, retention) else {
                return Ok(0);
            };
            found
        };
        let stay = self.staying(&runs, tier, retention)?;
        let merge = Merge {
            runs: &runs,
            stay: &stay,
            tier,
        };
        let number = {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            let number = writer.next_number;
            writer.next_number += 1;
            number
        };
        let Some(merged) = merge.write(self.dir(), self.log_id(), number)? else {
            return Ok(0);
        };
        let merged = Arc::new(merged);
        {
            let mut live = self.change();
            let (begin, end) = (merged.from.seq, merged.to().seq);
            let inside = |seq: &u64| (begin + 1..end).contains(seq);
            let late = self
                .protected()
                .into_iter()
                .filter(inside)
                .any(|seq| !stay.contains(&seq));
            let same = live.runs.get(place..place + runs.len());
            let same =
                same.is_some_and(|now| now.iter().zip(&runs).all(|(a, b)| Arc::ptr_eq(a, b)));
            if late || !same {
                // A point was pinned meanwhile that would be gone.
                drop(live);
                self.remove_file(&merged)?;
                return Ok(0);
            }
            live.version += 1;
            live.runs
                .splice(place..place + runs.len(), [Arc::clone(&merged)]);
        }
        for run in &runs {
            self.remove_file(run)?;
        }
        Ok(runs.len())
    }

    /// Which boundaries inside of `runs` stay.
    fn staying(
        &self,
        runs: &[Arc<ClosedRun>],
        tier: u32,
        retention: &Retention,
    ) -> Result<BTreeSet<u64>, HistoryError> {
        let protected = self.protected();
        let distance = retention.distance(tier);
        let mut stay = BTreeSet::new();
        let mut last = runs.first().map_or(0, |run| run.from.time_ms);
        for run in runs {
            for step in run.steps()? {
                let bucket = |time_ms: u64| distance.map(|distance| time_ms / distance);
                let next = distance.is_some() && bucket(step.to.time_ms) != bucket(last);
                if protected.contains(&step.to.seq) || (step.to.kept && next) {
                    stay.insert(step.to.seq);
                    last = step.to.time_ms;
                }
            }
        }
        Ok(stay)
    }
}

/// The first consecutive runs that are due for the same tier, if there are enough of them, and their place.
fn candidates(
    runs: &[Arc<ClosedRun>],
    now_ms: u64,
    retention: &Retention,
) -> Option<(usize, Vec<Arc<ClosedRun>>, u32)> {
    // What is cold stays as it is.
    let due = |run: &ClosedRun| {
        if run.is_cold() {
            return None;
        }
        let age = now_ms.saturating_sub(run.to().time_ms);
        let tier = retention.tier_of(age);
        (tier > run.tier).then_some(tier)
    };
    let mut place = 0;
    while let Some(first) = runs.get(place) {
        let Some(tier) = due(first) else {
            place += 1;
            continue;
        };
        let mut found = Vec::new();
        let mut entries = 0;
        for run in runs
            .iter()
            .skip(place)
            .take_while(|run| due(run) == Some(tier))
        {
            entries += run.entries_count();
            if found.len() == MERGE_RUNS || (!found.is_empty() && entries > MERGE_ENTRIES) {
                break;
            }
            found.push(Arc::clone(run));
        }
        // The last ones wait for those that come behind them, unless these are not of their kind.
        let bounded = place + found.len() < runs.len();
        if found.len() >= WORTH || (bounded && tier == PINS_ONLY) || found.len() >= runs.len() {
            return Some((place, found, tier));
        }
        place += found.len().max(1);
    }
    None
}
