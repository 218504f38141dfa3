//! One window judged.

use super::Model;
use crate::features::{self, Window};
use crate::signals::Source;

/// What a model says of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// 0 normal to 1 faulty.
    pub score: f32,
    /// Whether it is faulty.
    pub faulty: bool,
    /// The most likely kinds of fault with their scores, best first. Of use if it is faulty.
    pub kinds: Vec<(String, f32)>,
    /// Distance from all that was learnt, in relation to the threshold: 1 and more is like nothing that was learnt.
    pub novelty: f32,
    /// What speaks most for its label, strongest first.
    pub reasons: Vec<Reason>,
    /// 1 if all is there that the model listens to; less by the weight of what is missing.
    pub confidence: f32,
    /// Sources that are missing and that the model listens to.
    pub missing: Vec<Source>,
}

/// A feature that speaks for a label.
#[derive(Debug, Clone, PartialEq)]
pub struct Reason {
    /// Its name.
    pub feature: String,
    /// Its value.
    pub value: f32,
    /// What it adds to the score.
    pub adds: f32,
    /// In words.
    pub words: String,
}

/// Reasons that are given.
const REASONS: usize = 3;
/// Kinds that are given.
const KINDS: usize = 3;

impl Model {
    /// Its features, of all.
    pub(crate) fn pick(&self, all: &[f32]) -> Vec<f32> {
        let of = |column: &usize| all.get(*column).copied().unwrap_or_default();
        self.columns.iter().map(of).collect()
    }

    /// The score of its features.
    pub(crate) fn score(&self, row: &[f32]) -> f32 {
        self.classifier.score(row)
    }

    /// Distance from all that was learnt, in relation to the threshold.
    pub(crate) fn unlike(&self, row: &[f32]) -> f32 {
        self.novelty.distance(row) / self.novelty.threshold.max(f32::MIN_POSITIVE)
    }

    /// Judges a window.
    pub fn judge(&self, window: &Window) -> Judgement {
        let row = self.pick(&window.values);
        let score = self.classifier.score(&row);
        let faulty = score >= self.header.verdict.threshold;
        let is_there = |at: usize| {
            let column = self.columns.get(at).copied().unwrap_or(usize::MAX);
            window.there.get(column).copied().unwrap_or(false)
        };
        let lost: f32 =
            self.weights.iter().enumerate().fold(
                0.0,
                |lost, (at, w)| {
                    if is_there(at) { lost } else { lost + w }
                },
            );
        Judgement {
            score,
            faulty,
            kinds: self.likely_kinds(&row),
            novelty: self.unlike(&row),
            reasons: self.reasons(&row, faulty),
            confidence: (1.0 - lost).clamp(0.0, 1.0),
            missing: self.listens_to(&window.missing),
        }
    }

    /// The kinds of fault that it knows, most likely first.
    pub(crate) fn likely_kinds(&self, row: &[f32]) -> Vec<(String, f32)> {
        let names = self.header.kinds.iter().cloned();
        let mut kinds: Vec<(String, f32)> = names
            .zip(&self.kinds)
            .map(|(name, trees)| (name, trees.sum(row).clamp(0.0, 1.0)))
            .collect();
        kinds.sort_by(|a, b| b.1.total_cmp(&a.1));
        kinds.truncate(KINDS);
        kinds
    }

    fn reasons(&self, row: &[f32], faulty: bool) -> Vec<Reason> {
        let sign = if faulty { 1.0 } else { -1.0 };
        let adds = self.classifier.contributions(row);
        let mut order: Vec<usize> = (0..adds.len())
            .filter(|at| adds[*at] * sign > 0.0)
            .collect();
        order.sort_by(|a, b| (adds[*b] * sign).total_cmp(&(adds[*a] * sign)));
        let mut reasons: Vec<Reason> = Vec::new();
        let mut channels: Vec<&str> = Vec::new();
        for at in order {
            let all = features::features();
            let Some(feature) = self.columns.get(at).and_then(|column| all.get(*column)) else {
                continue;
            };
            // Three signals, not three figures of one.
            let channel = feature.channel().map_or("", |(channel, _)| channel.name);
            if channels.contains(&channel) {
                continue;
            }
            channels.push(channel);
            let value = row.get(at).copied().unwrap_or_default();
            reasons.push(Reason {
                feature: feature.name().to_owned(),
                value,
                adds: adds[at],
                words: feature.in_words(value),
            });
            if reasons.len() == REASONS {
                break;
            }
        }
        reasons
    }

    /// Those of these sources that it listens to.
    fn listens_to(&self, sources: &[Source]) -> Vec<Source> {
        let all = features::features();
        let uses = |source: &Source| {
            self.columns.iter().zip(&self.weights).any(|(at, weight)| {
                *weight > 0.0
                    && all
                        .get(*at)
                        .is_some_and(|f| f.signals().iter().any(|s| s.source() == *source))
            })
        };
        sources.iter().copied().filter(uses).collect()
    }
}
