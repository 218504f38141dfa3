//! Training: a model from a table.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::LearnError;
use super::draw::draw;
use super::fit::{self, fit};
use super::known;
use super::metrics::{auc, best_threshold};
use super::table::{Label, Row, Run, Table};
use crate::features::{FEATURES_VERSION, Feature, features};
use crate::model::{Classifier, Header, Method, Model, Novelty, Thresholds, Training, Trees};
use crate::signals::SIGNALS_VERSION;

/// How to learn.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// By what.
    pub method: Method,
    /// Of what is random.
    pub seed: u64,
    /// Windows to learn from; half of them normal.
    pub rows: usize,
    /// Whether to use what the guest dirties in memory and on disk.
    pub dirty: bool,
    /// Whether to learn the kinds of fault, too.
    pub kinds: bool,
    /// A verdict needs so many windows...
    pub k: u32,
    /// ...of the last so many.
    pub n: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            method: Method::Forest,
            seed: 1,
            rows: 6000,
            dirty: true,
            kinds: true,
            k: 4,
            n: 5,
        }
    }
}

/// Trees and windows for each kind of fault: one against the others.
const KIND_TREES: usize = 24;
const KIND_ROWS: usize = 1200;

/// Each part of the recordings is judged by what was learnt from the others, to choose thresholds.
const PARTS: usize = 3;

/// So many recordings of a hundred may get a false alarm by the threshold alone.
const ODD_PER_CENT: usize = 3;

/// Of windows that are like what was learnt, so many are nearer than the threshold of novelty.
const FAMILIAR: f64 = 0.995;

/// A recording's windows with scores, in the order of time.
pub type Scored = Vec<(f32, Label)>;

/// Learns from these recordings of a table.
///
/// # Errors
/// There are not both normal and faulty windows; the library gives up.
pub fn train(table: &Table, members: &[usize], options: Options) -> Result<Model, LearnError> {
    let runs: Vec<&Run> = members
        .iter()
        .filter_map(|at| table.runs.get(*at))
        .collect();
    let (mut of_runs, mut distances) = (Vec::new(), Vec::new());
    let parts = parts(&runs, options.seed);
    for (at, aside) in parts.iter().enumerate() {
        let others = parts.iter().enumerate().filter(|(other, _)| *other != at);
        let rest: Vec<&Run> = others.flat_map(|(_, part)| part.iter().copied()).collect();
        let options = Options {
            kinds: false,
            ..options
        };
        let trial = match Parts::learn(&rest, options) {
            Ok(trial) => trial,
            // All that there is of it is in this part.
            Err(LearnError::OneSided(_)) => continue,
            Err(error) => return Err(error),
        };
        of_runs.extend(aside.iter().map(|run| trial.scores(run)));
        let rows = aside.iter().flat_map(|run| run.rows.iter().step_by(5));
        distances.extend(rows.map(|row| trial.novelty.distance(&trial.pick(row))));
    }
    let scored: Vec<(f32, bool)> = of_runs
        .iter()
        .flatten()
        .filter(|(_, label)| *label != Label::Between)
        .map(|(score, label)| (*score, *label == Label::Faulty))
        .collect();
    let (threshold, f1) = best_threshold(&scored).unwrap_or((0.5, 0.0));
    let alarm = alarm_threshold(&of_runs, threshold, options.k, options.n);
    let whole = Parts::learn(&runs, options)?;
    let mut novelty = whole.novelty;
    novelty.threshold = quantile(distances, FAMILIAR).unwrap_or(f32::MAX).max(1e-3);
    let windows: usize = runs.iter().map(|run| run.rows.len()).sum();
    let header = Header {
        features_version: FEATURES_VERSION,
        signals_version: SIGNALS_VERSION,
        method: options.method,
        features: whole
            .columns
            .iter()
            .map(|at| features()[*at].name().to_owned())
            .collect(),
        kinds: whole.kinds.iter().map(|(name, _)| name.clone()).collect(),
        verdict: Thresholds {
            threshold,
            alarm,
            k: options.k,
            n: options.n,
        },
        training: Training {
            data_set: table.hash.clone(),
            recordings: u32::try_from(runs.len()).unwrap_or(u32::MAX),
            windows: u32::try_from(windows).unwrap_or(u32::MAX),
            hours: runs.iter().map(|run| hours(run)).sum(),
            seed: options.seed,
            f1,
            auc: auc(&scored).unwrap_or(0.0),
        },
    };
    let kinds = whole.kinds.into_iter().map(|(_, trees)| trees).collect();
    Ok(Model::new(header, whole.classifier, kinds, novelty)?)
}

#[allow(clippy::cast_precision_loss, reason = "some hours")]
fn hours(run: &Run) -> f64 {
    run.rows
        .last()
        .map_or(0.0, |row| row.at_ms as f64 / 3_600_000.0)
}

/// Parts with recordings of each class, whole families together where they are of one class.
fn parts<'a>(runs: &[&'a Run], seed: u64) -> [Vec<&'a Run>; PARTS] {
    let mut order = runs.to_vec();
    let place = |run: &Run| {
        let family = run
            .family
            .map_or_else(|| run.name.clone(), |family| family.to_string());
        (
            run.fault.clone(),
            xxh3_64_with_seed(family.as_bytes(), seed),
        )
    };
    order.sort_by_cached_key(|run| place(run));
    let mut parts: [Vec<&Run>; PARTS] = Default::default();
    let (mut last, mut turn) = (None, 0);
    for (at, run) in order.into_iter().enumerate() {
        if run.family.is_none() || last != Some(run.family) {
            turn = at % PARTS;
        }
        last = Some(run.family);
        parts[turn].push(run);
    }
    parts
}

/// What is learnt, before it is a model.
struct Parts {
    columns: Vec<usize>,
    classifier: Classifier,
    kinds: Vec<(String, Trees)>,
    novelty: Novelty,
}

impl Parts {
    fn learn(runs: &[&Run], options: Options) -> Result<Self, LearnError> {
        let half = options.rows / 2;
        let normal = draw(runs, Label::Normal, half, options.seed);
        let faulty = draw(runs, Label::Faulty, half, options.seed ^ 1);
        for (rows, name) in [(&normal, "normal"), (&faulty, "faulty")] {
            if rows.is_empty() {
                return Err(LearnError::OneSided(name));
            }
        }
        // One of each in turn, so that every part of them has both.
        let mixed: Vec<(&Row, bool)> = normal
            .iter()
            .map(|row| (*row, false))
            .zip(faulty.iter().map(|row| (*row, true)))
            .flat_map(|(normal, faulty)| [normal, faulty])
            .collect();
        let columns = columns(&mixed, options.dirty);
        if columns.is_empty() {
            return Err(LearnError::Library("no feature ever changes".to_owned()));
        }
        let rows: Vec<Vec<f32>> = mixed.iter().map(|(row, _)| pick(row, &columns)).collect();
        let labels: Vec<bool> = mixed.iter().map(|(_, faulty)| *faulty).collect();
        Ok(Self {
            classifier: fit(options.method, &rows, &labels, options.seed)?,
            novelty: known::cover(&rows),
            kinds: match options.kinds {
                true => kinds(runs, &columns, options.seed)?,
                false => Vec::new(),
            },
            columns,
        })
    }

    fn pick(&self, row: &Row) -> Vec<f32> {
        pick(row, &self.columns)
    }

    fn scores(&self, run: &Run) -> Scored {
        let score = |row: &Row| (self.classifier.score(&self.pick(row)), row.label);
        run.rows.iter().map(score).collect()
    }
}

fn pick(row: &Row, columns: &[usize]) -> Vec<f32> {
    columns.iter().map(|at| row.values[*at]).collect()
}

/// Features that are of use: those that are not the same everywhere.
fn columns(rows: &[(&Row, bool)], dirty: bool) -> Vec<usize> {
    let all: &[Feature] = features();
    let changes = |at: usize| {
        let first = rows.first().map(|(row, _)| row.values[at]);
        rows.iter().any(|(row, _)| Some(row.values[at]) != first)
    };
    (0..all.len())
        .filter(|at| (dirty || !all[*at].is_of_dirty()) && changes(*at))
        .collect()
}

/// Each kind of fault against the others.
fn kinds(runs: &[&Run], columns: &[usize], seed: u64) -> Result<Vec<(String, Trees)>, LearnError> {
    let mut names: Vec<&str> = runs.iter().filter_map(|run| run.fault.as_deref()).collect();
    names.sort_unstable();
    names.dedup();
    let mut of = Vec::new();
    for name in names {
        let part = |is: bool| -> Vec<&Run> {
            let wanted =
                |run: &&&Run| run.fault.is_some() && (run.fault.as_deref() == Some(name)) == is;
            runs.iter().filter(wanted).copied().collect()
        };
        let this = draw(&part(true), Label::Faulty, KIND_ROWS / 2, seed);
        let others = draw(&part(false), Label::Faulty, KIND_ROWS / 2, seed);
        if this.is_empty() || others.is_empty() {
            continue;
        }
        let rows = this.iter().chain(&others).map(|row| pick(row, columns));
        let rows: Vec<Vec<f32>> = rows.collect();
        let labels: Vec<bool> = (0..rows.len()).map(|at| at < this.len()).collect();
        of.push((
            name.to_owned(),
            fit::forest(&rows, &labels, KIND_TREES, seed)?,
        ));
    }
    Ok(of)
}

/// A threshold for verdicts, not below `from`, chosen on recordings that were not learnt from. The lowest with which hardly one of them gets a
/// verdict while it is normal. Not the lowest with which none gets one: what is odd about a single recording must not decide what is found in
/// all others.
pub fn alarm_threshold(runs: &[Scored], from: f32, k: u32, n: u32) -> f32 {
    let mut reached: Vec<f32> = runs.iter().map(|run| reached(run, k, n)).collect();
    reached.sort_by(|a, b| b.total_cmp(a));
    let Some(most) = reached.get(runs.len() * ODD_PER_CENT / 100).copied() else {
        return from;
    };
    // Just above it, and never out of reach.
    (most + 0.001).clamp(from, from.max(0.98))
}

/// The score that k of n normal windows of a recording reach together: the k-th highest of the last n, at its most. 0 if there are not so many.
fn reached(run: &Scored, k: u32, n: u32) -> f32 {
    let of = |x: u32| usize::try_from(x).unwrap_or(usize::MAX).max(1);
    let (k, n) = (of(k), of(n));
    let mut most: f32 = 0.0;
    for end in k..=run.len() {
        let window = &run[end.saturating_sub(n)..end];
        if window.iter().any(|(_, label)| *label != Label::Normal) {
            continue;
        }
        let mut scores: Vec<f32> = window.iter().map(|(score, _)| *score).collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        most = scores.get(k - 1).copied().unwrap_or(0.0).max(most);
    }
    most
}

fn quantile(mut values: Vec<f32>, share: f64) -> Option<f32> {
    values.sort_by(f32::total_cmp);
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place"
    )]
    let at = ((values.len() as f64 * share) as usize).min(values.len().checked_sub(1)?);
    values.get(at).copied()
}
