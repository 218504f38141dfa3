//! Windows that stand for all that was learnt: one after the other the one that is farthest from those chosen before.

use super::fit::scales;
use crate::model::{Novelty, distance};

/// More cover it more closely, and cost time and bytes.
const KNOWN: usize = 96;

/// Of these rows. The threshold is that of no one yet.
pub(super) fn cover(rows: &[Vec<f32>]) -> Novelty {
    let (mean, scale) = scales(rows);
    let mut novelty = Novelty {
        mean,
        scale,
        known: Vec::new(),
        threshold: f32::MAX,
    };
    let rows: Vec<Vec<f32>> = rows.iter().map(|row| novelty.standard(row)).collect();
    let mut nearest = vec![f32::MAX; rows.len()];
    let mut next = (!rows.is_empty()).then_some(0);
    while let Some(at) = next.filter(|_| novelty.known.len() < KNOWN) {
        let chosen = rows[at].clone();
        for (row, nearest) in rows.iter().zip(&mut nearest) {
            *nearest = nearest.min(distance(row, &chosen));
        }
        novelty.known.push(chosen);
        let farthest = (0..rows.len()).max_by(|a, b| nearest[*a].total_cmp(&nearest[*b]));
        next = farthest.filter(|at| nearest[*at] > 0.0);
    }
    novelty
}
