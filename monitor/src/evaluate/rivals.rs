//! Who judges, and how each comes to its scores and thresholds.

use serde::Serialize;

use super::fixed::Rules;
use super::folds::Fold;
use super::heartbeat::Beats;
use super::outcome::Outcome;
use crate::learn::metrics::best_threshold;
use crate::learn::{Label, LearnError, Options, Row, Run, Scored, Table, alarm_threshold, train};
use crate::model::Method;

/// Somebody who judges windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rival {
    /// A model.
    Model(Method),
    /// The same without what the guest dirties in memory and on disk.
    WithoutDirty(Method),
    /// Novelty alone: how unlike a window is to all that was learnt.
    Novelty,
    /// Fixed thresholds on CPU, I/O and memory.
    Fixed,
    /// A program in the guest that only answers.
    Heartbeat,
    /// The application, asked the same way.
    ApplicationHeartbeat,
}

impl Rival {
    /// Its name in reports.
    pub fn name(self) -> String {
        match self {
            Rival::Model(method) => method.name().to_owned(),
            Rival::WithoutDirty(_) => "without_dirty".to_owned(),
            Rival::Novelty => "novelty".to_owned(),
            Rival::Fixed => "fixed_thresholds".to_owned(),
            Rival::Heartbeat => "heartbeat".to_owned(),
            Rival::ApplicationHeartbeat => "application_heartbeat".to_owned(),
        }
    }

    /// All that a model that learns by `method` is compared with, and all models.
    pub fn all(method: Method, heartbeats: bool) -> Vec<Rival> {
        let mut all: Vec<Rival> = Method::ALL.into_iter().map(Rival::Model).collect();
        all.extend([Rival::WithoutDirty(method), Rival::Novelty, Rival::Fixed]);
        if heartbeats {
            all.extend([Rival::Heartbeat, Rival::ApplicationHeartbeat]);
        }
        all
    }
}

/// Scores of a recording and the thresholds for them.
type Scores<'a> = Box<dyn Fn(usize, &Run) -> Vec<f32> + 'a>;

/// Learns from one side of the fold, judges the other.
pub(super) fn judge(
    rival: Rival,
    table: &Table,
    beats: &[Option<Beats>],
    fold: &Fold,
    options: Options,
) -> Result<Outcome, LearnError> {
    let learn = |method, dirty, kinds| {
        let options = Options {
            method,
            dirty,
            kinds,
            ..options
        };
        train(table, &fold.train, options)
    };
    let tuned = |score: Scores<'_>| outcome(table, fold, options, score, None);
    match rival {
        Rival::Model(method) | Rival::WithoutDirty(method) => {
            let main = rival == Rival::Model(options.method);
            let model = learn(method, rival == Rival::Model(method), main)?;
            let verdict = model.header().verdict;
            let score: Scores<'_> = Box::new(|_, run| {
                let of = |row: &Row| model.score(&model.pick(&row.values));
                run.rows.iter().map(of).collect()
            });
            let thresholds = Some((verdict.threshold, verdict.alarm));
            let mut outcome = outcome(table, fold, options, score, thresholds);
            if main {
                for run in fold.test.iter().map(|at| &table.runs[*at]) {
                    let Some(truth) = &run.fault else { continue };
                    for row in run.rows.iter().filter(|row| row.label == Label::Faulty) {
                        let kinds = model.likely_kinds(&model.pick(&row.values));
                        let said = kinds.first().map(|(name, _)| name.clone());
                        let pair = (truth.clone(), said.unwrap_or_else(|| "none".to_owned()));
                        *outcome.kinds.entry(pair).or_default() += 1;
                    }
                }
            }
            Ok(outcome)
        }
        Rival::Novelty => {
            // It is the same with every method; this one learns in no time.
            let model = learn(Method::Logistic, true, false)?;
            let score: Scores<'_> = Box::new(|_, run| {
                let of = |row: &Row| model.unlike(&model.pick(&row.values));
                run.rows.iter().map(of).collect()
            });
            Ok(outcome(table, fold, options, score, Some((1.0, 1.0))))
        }
        Rival::Fixed => {
            let of = fold
                .train
                .iter()
                .flat_map(|at| table.runs[*at].rows.iter().step_by(3));
            let rules = Rules::tune(&of.collect::<Vec<_>>());
            Ok(tuned(Box::new(move |_, run| {
                run.rows
                    .iter()
                    .map(|row| rules.score(&row.values))
                    .collect()
            })))
        }
        Rival::Heartbeat | Rival::ApplicationHeartbeat => {
            let application = rival == Rival::ApplicationHeartbeat;
            Ok(tuned(Box::new(move |at, run| {
                let beats = beats.get(at).and_then(Option::as_ref);
                let of = |row: &Row| beats.map_or(0.0, |b| b.missed(application, row.at_ms));
                run.rows.iter().map(of).collect()
            })))
        }
    }
}

/// What comes out. Without thresholds they are chosen on the side that is learnt from.
fn outcome(
    table: &Table,
    fold: &Fold,
    options: Options,
    score: Scores<'_>,
    thresholds: Option<(f32, f32)>,
) -> Outcome {
    let scored = |at: &usize| -> Scored {
        let run = &table.runs[*at];
        let labels = run.rows.iter().map(|row| row.label);
        score(*at, run).into_iter().zip(labels).collect()
    };
    let (threshold, alarm) = thresholds.unwrap_or_else(|| {
        let of_runs: Vec<Scored> = fold.train.iter().map(scored).collect();
        let flat: Vec<(f32, bool)> = of_runs
            .iter()
            .flatten()
            .filter(|(_, label)| *label != Label::Between)
            .map(|(score, label)| (*score, *label == Label::Faulty))
            .collect();
        let threshold = best_threshold(&flat).map_or(0.5, |(threshold, _)| threshold);
        (
            threshold,
            alarm_threshold(&of_runs, threshold, options.k, options.n),
        )
    });
    let mut outcome = Outcome::new(&fold.name);
    for at in &fold.test {
        outcome.judge(
            &table.runs[*at],
            &scored(at),
            threshold,
            alarm,
            options.k,
            options.n,
        );
    }
    outcome
}
