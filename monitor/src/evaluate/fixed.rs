//! Fixed thresholds on CPU, I/O and memory, as operators set them, to compare with: too much or too little of something is ill. Tuned on the
//! same recordings that models learn from.

use crate::features;
use crate::learn::metrics::Counts;
use crate::learn::{Label, Row};

/// What has thresholds.
const SIGNALS: [&str; 5] = [
    "cpu.demand.level",
    "block.read.ops.level",
    "block.write.ops.level",
    "memory.resident.level",
    "memory.swapped.level",
];
/// Thresholds that are tried for each of them, each way.
const TRIED: usize = 40;
/// Rules at most.
const RULES: usize = 6;

/// Ill if `sign · value` is above the threshold.
#[derive(Debug, Clone, Copy)]
struct Rule {
    column: usize,
    sign: f32,
    threshold: f32,
    /// What is far for this signal.
    scale: f32,
}

impl Rule {
    fn exceeds(&self, values: &[f32]) -> f32 {
        (self.sign * values[self.column] - self.threshold) / self.scale
    }
}

/// Rules of which one is enough.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    /// How far the worst is beyond its threshold; below 0: none is.
    pub(super) fn score(&self, values: &[f32]) -> f32 {
        let all = self.0.iter().map(|rule| rule.exceeds(values));
        all.reduce(f32::max).unwrap_or(-1.0)
    }

    /// One rule after the other, each the one that improves F1 most.
    pub(super) fn tune(rows: &[&Row]) -> Self {
        let rows: Vec<&&Row> = rows
            .iter()
            .filter(|row| row.label != Label::Between)
            .collect();
        let candidates = candidates(&rows);
        let mut rules = Rules::default();
        let mut ill = vec![false; rows.len()];
        let mut best_f1 = 0.0;
        for _ in 0..RULES {
            let mut best = None;
            for rule in &candidates {
                let mut counts = Counts::default();
                for (row, ill) in rows.iter().zip(&ill) {
                    let said = *ill || rule.exceeds(&row.values) >= 0.0;
                    counts.add(row.label == Label::Faulty, said);
                }
                let f1 = counts.f1().unwrap_or(0.0);
                if f1 > best_f1 + 1e-3 {
                    (best, best_f1) = (Some(*rule), f1);
                }
            }
            let Some(rule) = best else { break };
            for (row, ill) in rows.iter().zip(&mut ill) {
                *ill |= rule.exceeds(&row.values) >= 0.0;
            }
            rules.0.push(rule);
        }
        rules
    }
}

fn candidates(rows: &[&&Row]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for column in SIGNALS.iter().filter_map(|name| features::named(name)) {
        let mut values: Vec<f32> = rows.iter().map(|row| row.values[column]).collect();
        values.sort_by(f32::total_cmp);
        let (Some(first), Some(last)) = (values.first(), values.last()) else {
            continue;
        };
        let scale = (last - first).max(1e-3);
        for step in 0..TRIED {
            let at = step * values.len() / TRIED;
            for sign in [1.0, -1.0] {
                let threshold = sign * values[at];
                rules.push(Rule {
                    column,
                    sign,
                    threshold,
                    scale,
                });
            }
        }
    }
    rules
}
