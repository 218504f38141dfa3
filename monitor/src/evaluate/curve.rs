//! The curve of false alarms against hits of one rival, over all folds, small enough to be drawn.

use super::folds::Scheme;
use super::outcome::Outcome;
use crate::learn::metrics::{auc, roc};

/// Points that are kept: more can't be seen.
const POINTS: usize = 400;

/// One curve. The windows of all folds are in it together, though each fold has a model of its own: what its scores mean differs a little
/// from fold to fold, which makes this curve no better than the mean of theirs.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Whose it is, as reports call it.
    pub rival: String,
    /// What was left out.
    pub scheme: Scheme,
    /// The area under it, of all its points.
    pub auc: f64,
    /// Shares of false alarms and of hits, from (0, 0) to (1, 1).
    pub points: Vec<(f64, f64)>,
}

impl Curve {
    /// None if there are not both labels.
    pub(super) fn of(rival: String, scheme: Scheme, outcomes: &[&Outcome]) -> Option<Self> {
        let scored: Vec<(f32, bool)> = outcomes
            .iter()
            .flat_map(|outcome| outcome.scored.iter().copied())
            .collect();
        let auc = auc(&scored)?;
        Some(Self {
            rival,
            scheme,
            auc,
            points: thin(roc(&scored)),
        })
    }
}

/// Of many points those that are a step from the last one that was kept, along both axes together, and both ends.
#[allow(clippy::cast_precision_loss, reason = "some hundred points")]
fn thin(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    if points.len() <= POINTS {
        return points;
    }
    // A curve that only rises is not longer than 2 that way.
    let step = 2.0 / (POINTS - 2) as f64;
    let last = points.last().copied();
    let mut kept: Vec<(f64, f64)> = Vec::with_capacity(POINTS);
    for point in points {
        let is_far = kept
            .last()
            .is_none_or(|(x, y)| point.0 - x + point.1 - y >= step);
        if is_far {
            kept.push(point);
        }
    }
    kept.extend(last.filter(|last| kept.last() != Some(last)));
    kept
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::cast_precision_loss)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_form_and_its_ends() {
        let mut outcome = Outcome::new("x");
        for at in 0_u16..5000 {
            // Every score its own; faulty ones are higher, but not all.
            let score = f32::from(at) / 5000.0;
            outcome.scored.push((score, at % 3 == 0 || at > 3000));
        }
        let whole = roc(&outcome.scored);
        let curve = Curve::of("x".to_owned(), Scheme::Loads, &[&outcome]).unwrap();
        assert!(whole.len() > POINTS && curve.points.len() <= POINTS);
        assert_eq!(curve.points.first(), Some(&(0.0, 0.0)));
        assert_eq!(curve.points.last(), Some(&(1.0, 1.0)));
        let area = |two: &[(f64, f64)]| (two[1].0 - two[0].0) * (two[0].1 + two[1].1) / 2.0;
        let drawn: f64 = curve.points.windows(2).map(area).sum();
        assert!((drawn - curve.auc).abs() < 0.01, "{drawn} {}", curve.auc);
        assert_eq!(Curve::of("x".to_owned(), Scheme::Loads, &[]), None);
    }
}
