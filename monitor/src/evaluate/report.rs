//! Means and spreads over the folds, as JSON has them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::curve::Curve;
use super::details::{self, KindDetails, LoadDetails};
use super::folds::Scheme;
use super::outcome::Outcome;
use super::rivals::Rival;
use crate::learn::metrics::{Counts, auc, mean_and_spread};
use crate::learn::{Options, Table};

/// Figures of one rival in one scheme. Means are over the folds in which there are both normal and faulty windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Mean.
    pub f1: Option<f64>,
    /// Mean.
    pub auc: Option<f64>,
    /// Mean.
    pub precision: Option<f64>,
    /// Mean.
    pub recall: Option<f64>,
    /// Standard deviation over the folds.
    pub f1_spread: Option<f64>,
    /// The same.
    pub auc_spread: Option<f64>,
    /// F1 of all windows of all folds together.
    pub f1_pooled: Option<f64>,
    /// All windows of all folds.
    pub windows: Counts,
    /// Folds that are in the means.
    pub folds: usize,
    /// Verdicts without a fault, for each day of a VM that is watched.
    pub false_alarms_per_vm_day: Option<f64>,
    /// How many there were.
    pub false_alarms: u64,
    /// Days of VMs without a fault that were watched.
    pub normal_vm_days: f64,
    /// Of those, verdicts that last so long that something would be done to the VM (`patience` of the actions, its default).
    pub false_actions_per_vm_day: Option<f64>,
    /// How many there were.
    pub false_actions: u64,
    /// Faults whose verdict lasts so long.
    pub acted_on: usize,
    /// From a fault to its verdict.
    pub detection_delay_s: Delay,
    /// F1 of each fold, by what was left out; null if it has no faulty windows.
    pub f1_of_folds: BTreeMap<String, Option<f64>>,
}

/// Delays in seconds. What is not found has an endless delay: then a quantile can be null.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Delay {
    /// Median.
    pub p50: Option<f64>,
    /// Nine of ten are not longer.
    pub p90: Option<f64>,
    /// Faults that were found.
    pub found: usize,
    /// All faults.
    pub of: usize,
}

/// Both schemes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Loads that were never seen.
    pub unseen_loads: Figures,
    /// Kinds of fault that were never seen.
    pub unseen_faults: Figures,
}

/// All that came out.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// xxh3 of the data set.
    pub data_set: String,
    /// Recordings in it.
    pub recordings: usize,
    /// Hours of VM time.
    pub hours: f64,
    /// The main model.
    pub method: String,
    /// Of the main model.
    pub unseen_loads: Figures,
    /// Of the main model.
    pub unseen_faults: Figures,
    /// Of the main model, on unseen loads.
    pub false_alarms_per_vm_day: Option<f64>,
    /// Of the main model, on unseen loads.
    pub detection_delay_s: Delay,
    /// Of faulty windows of unseen loads, the part whose kind was named rightly.
    pub kinds_accuracy: Option<f64>,
    /// All models.
    pub classifiers: BTreeMap<String, Summary>,
    /// What they are compared with.
    pub baselines: BTreeMap<String, Summary>,
    /// Each kind of fault, judged by the main model.
    pub kinds: BTreeMap<String, KindDetails>,
    /// Each load that was never seen, judged by the main model.
    pub loads: BTreeMap<String, LoadDetails>,
    /// False alarms against hits of everybody, for pictures: the main model first.
    #[serde(skip)]
    pub curves: Vec<Curve>,
    /// Outcomes of the main model on unseen loads, for pictures.
    #[serde(skip)]
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub(super) fn of(table: &Table, options: Options, all: &[(Rival, Scheme, Outcome)]) -> Self {
        let of = |rival: Rival, scheme| -> Vec<&Outcome> {
            let wanted = |(r, s, _): &&(Rival, Scheme, Outcome)| (*r, *s) == (rival, scheme);
            all.iter()
                .filter(wanted)
                .map(|(.., outcome)| outcome)
                .collect()
        };
        let summary = |rival| Summary {
            unseen_loads: figures(&of(rival, Scheme::Loads)),
            unseen_faults: figures(&of(rival, Scheme::Faults)),
        };
        let mut rivals: Vec<Rival> = Vec::new();
        for (rival, ..) in all {
            if !rivals.contains(rival) {
                rivals.push(*rival);
            }
        }
        // The one that a report is of goes before those that it is compared with.
        rivals.sort_by_key(|rival| (*rival != Rival::Model(options.method), rival.name()));
        let named = |models: bool| {
            let wanted = |r: &&Rival| matches!(r, Rival::Model(_)) == models;
            let of = rivals.iter().filter(wanted);
            of.map(|rival| (rival.name(), summary(*rival))).collect()
        };
        let main = summary(Rival::Model(options.method));
        let curves = rivals
            .iter()
            .flat_map(|rival| Scheme::ALL.map(|scheme| (*rival, scheme)));
        let curves = curves
            .filter_map(|(rival, scheme)| Curve::of(rival.name(), scheme, &of(rival, scheme)))
            .collect();
        let outcomes: Vec<Outcome> = of(Rival::Model(options.method), Scheme::Loads)
            .into_iter()
            .cloned()
            .collect();
        Self {
            data_set: table.hash.clone(),
            recordings: table.runs.len(),
            hours: table.hours,
            method: options.method.name().to_owned(),
            false_alarms_per_vm_day: main.unseen_loads.false_alarms_per_vm_day,
            detection_delay_s: main.unseen_loads.detection_delay_s.clone(),
            unseen_loads: main.unseen_loads,
            unseen_faults: main.unseen_faults,
            kinds_accuracy: details::named_rightly(
                outcomes.iter().flat_map(|outcome| &outcome.kinds),
            ),
            kinds: details::kinds(&outcomes, &of(Rival::Model(options.method), Scheme::Faults)),
            loads: details::loads(&outcomes),
            curves,
            classifiers: named(true),
            baselines: named(false),
            outcomes,
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "some days, some faults")]
fn figures(outcomes: &[&Outcome]) -> Figures {
    let (mut f1, mut areas, mut precision, mut recall) = (vec![], vec![], vec![], vec![]);
    let mut pooled = Counts::default();
    let (mut false_alarms, mut normal_ms, mut delays) = (0, 0, Vec::new());
    let (mut false_actions, mut acted_on) = (0, 0);
    let mut f1_of_folds = BTreeMap::new();
    for outcome in outcomes {
        let counts = outcome.counts;
        if let Some(area) = auc(&outcome.scored) {
            areas.push(area);
            f1.extend(counts.f1());
            precision.extend(counts.precision());
            recall.extend(counts.recall());
        }
        pooled.hits += counts.hits;
        pooled.misses += counts.misses;
        pooled.false_alarms += counts.false_alarms;
        pooled.rests += counts.rests;
        false_alarms += outcome.false_alarms;
        false_actions += outcome.false_actions;
        acted_on += outcome.acted_on;
        normal_ms += outcome.normal_ms;
        delays.extend(
            outcome
                .delays
                .iter()
                .map(|(_, delay)| delay.unwrap_or(f64::INFINITY)),
        );
        f1_of_folds.insert(outcome.fold.clone(), counts.f1());
    }
    let days = normal_ms as f64 / 86_400_000.0;
    let of = |values: &[f64]| mean_and_spread(values);
    let a_day = |count: u64| (days > 0.0).then(|| count as f64 / days);
    Figures {
        f1: of(&f1).map(|(mean, _)| mean),
        auc: of(&areas).map(|(mean, _)| mean),
        precision: of(&precision).map(|(mean, _)| mean),
        recall: of(&recall).map(|(mean, _)| mean),
        f1_spread: of(&f1).map(|(_, spread)| spread),
        auc_spread: of(&areas).map(|(_, spread)| spread),
        f1_pooled: pooled.f1(),
        windows: pooled,
        folds: areas.len(),
        false_alarms_per_vm_day: a_day(false_alarms),
        false_alarms,
        false_actions_per_vm_day: a_day(false_actions),
        false_actions,
        acted_on,
        normal_vm_days: days,
        detection_delay_s: delay(delays),
        f1_of_folds,
    }
}

pub(super) fn delay(mut delays: Vec<f64>) -> Delay {
    delays.sort_by(f64::total_cmp);
    // Nearest rank: the smallest delay that so many do not exceed.
    let quantile = |tenths: usize| {
        let at = (delays.len() * tenths).div_ceil(10).checked_sub(1)?;
        delays.get(at).copied().filter(|delay| delay.is_finite())
    };
    Delay {
        p50: quantile(5),
        p90: quantile(9),
        found: delays.iter().filter(|delay| delay.is_finite()).count(),
        of: delays.len(),
    }
}
