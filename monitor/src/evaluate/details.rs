//! The main model, looked at closely: each kind of fault for itself, and each load.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::outcome::Outcome;
use super::report::{Delay, delay};

/// A kind of fault, under loads that were never seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct KindDetails {
    /// Faults that were found.
    pub found: usize,
    /// All of this kind.
    pub of: usize,
    /// Median of the delays in seconds; null if it is endless: half of them or more were not found.
    pub p50: Option<f64>,
    /// Of its faulty windows, the part of which the model named this kind; null if there are none.
    pub named_rightly: Option<f64>,
    /// The same kind when it was what was never seen.
    pub unseen: UnseenKind,
}

/// A kind of fault that was never seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct UnseenKind {
    /// F1 of the windows of its fold; null if none is faulty.
    pub f1: Option<f64>,
    /// Faults that were found.
    pub found: usize,
    /// All of this kind.
    pub of: usize,
    /// Median of the delays in seconds.
    pub p50: Option<f64>,
}

/// A load that was never seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LoadDetails {
    /// F1 of its windows; null if none is faulty.
    pub f1: Option<f64>,
    /// Verdicts without a fault.
    pub false_alarms: u64,
    /// Hours without a fault that were watched.
    pub normal_vm_hours: f64,
    /// Faults that were found.
    pub found: usize,
    /// All faults.
    pub of: usize,
    /// Median of the delays in seconds.
    pub p50: Option<f64>,
}

/// Windows of true kinds and said kinds.
type Pair<'a> = (&'a (String, String), &'a u64);

/// Of faulty windows, the part whose kind was named rightly. None of none.
#[allow(clippy::cast_precision_loss, reason = "counts of windows")]
pub(super) fn named_rightly<'a>(pairs: impl Iterator<Item = Pair<'a>>) -> Option<f64> {
    let (mut right, mut all) = (0_u64, 0_u64);
    for ((truth, said), count) in pairs {
        all += count;
        if truth == said {
            right += count;
        }
    }
    (all > 0).then(|| right as f64 / all as f64)
}

/// The delays of these faults.
fn delays<'a>(faults: impl Iterator<Item = &'a (String, Option<f64>)>) -> Delay {
    delay(faults.map(|(_, d)| d.unwrap_or(f64::INFINITY)).collect())
}

/// Each kind: `loads` and `faults` are the outcomes of both schemes.
pub(super) fn kinds(loads: &[Outcome], faults: &[&Outcome]) -> BTreeMap<String, KindDetails> {
    let there = loads.iter().flat_map(|outcome| &outcome.delays);
    let names: BTreeSet<&String> = there.map(|(kind, _)| kind).collect();
    let of = |kind: &String| {
        let is_it = |fault: &&(String, Option<f64>)| fault.0 == *kind;
        let seen = delays(loads.iter().flat_map(|o| o.delays.iter().filter(is_it)));
        // Its own fold; a recording without a fault is in some fold, too, and has no delay.
        let fold = faults.iter().find(|outcome| outcome.fold == *kind);
        let unseen = delays(fold.iter().flat_map(|o| o.delays.iter().filter(is_it)));
        let windows = loads.iter().flat_map(|outcome| &outcome.kinds);
        KindDetails {
            found: seen.found,
            of: seen.of,
            p50: seen.p50,
            named_rightly: named_rightly(windows.filter(|((truth, _), _)| truth == kind)),
            unseen: UnseenKind {
                f1: fold.and_then(|outcome| outcome.counts.f1()),
                found: unseen.found,
                of: unseen.of,
                p50: unseen.p50,
            },
        }
    };
    names
        .into_iter()
        .map(|kind| (kind.clone(), of(kind)))
        .collect()
}

/// Each load.
#[allow(clippy::cast_precision_loss, reason = "some hours")]
pub(super) fn loads(outcomes: &[Outcome]) -> BTreeMap<String, LoadDetails> {
    let of = |outcome: &Outcome| {
        let delay = delays(outcome.delays.iter());
        LoadDetails {
            f1: outcome.counts.f1(),
            false_alarms: outcome.false_alarms,
            normal_vm_hours: outcome.normal_ms as f64 / 3_600_000.0,
            found: delay.found,
            of: delay.of,
            p50: delay.p50,
        }
    };
    outcomes
        .iter()
        .map(|outcome| (outcome.fold.clone(), of(outcome)))
        .collect()
}
