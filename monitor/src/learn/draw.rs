//! Which windows are learnt from: so many of them, so that loads, kinds of fault and recordings count alike, whatever their lengths are.

use std::collections::HashMap;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::table::{Label, Row, Run};

/// A number from 0 to 1 that depends on the seed and a place alone.
#[allow(clippy::cast_precision_loss, reason = "53 bits")]
pub(super) fn random(seed: u64, place: u64) -> f64 {
    (xxh3_64_with_seed(&place.to_le_bytes(), seed) >> 11) as f64 / (1_u64 << 53) as f64
}

/// `count` windows with this label, some of them several times if there are few. Classes (loads, kinds of fault) have the same weight, and
/// within one its recordings.
#[allow(clippy::cast_precision_loss, reason = "counts of windows")]
pub(super) fn draw<'a>(runs: &[&'a Run], label: Label, count: usize, seed: u64) -> Vec<&'a Row> {
    let class = |run: &'a Run| match (label, &run.fault) {
        (Label::Faulty, Some(fault)) => fault.as_str(),
        _ => run.load.as_str(),
    };
    let mut of: Vec<(&Run, Vec<&Row>)> = Vec::new();
    let mut runs_of: HashMap<&str, f64> = HashMap::new();
    for &run in runs {
        let rows: Vec<&Row> = run.rows.iter().filter(|row| row.label == label).collect();
        if !rows.is_empty() {
            *runs_of.entry(class(run)).or_default() += 1.0;
            of.push((run, rows));
        }
    }
    let total = runs_of.len() as f64;
    let step = total / count.max(1) as f64;
    let mut drawn = Vec::with_capacity(count);
    // Evenly along the sum of weights: the least random way to draw by weight.
    let (mut sum, mut next) = (0.0, step * random(seed, 0));
    for (run, rows) in of {
        let weight = 1.0 / runs_of.get(class(run)).copied().unwrap_or(1.0) / rows.len() as f64;
        for row in rows {
            sum += weight;
            while next < sum && drawn.len() < count {
                drawn.push(row);
                next += step;
            }
        }
    }
    drawn
}
