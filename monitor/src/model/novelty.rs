//! "Never seen anything like it": the distance of a window from the nearest of those that stand for all that was learnt, well or ill.

use super::linear::standard;

/// What was learnt, as a few windows that cover it.
#[derive(Debug, Clone, PartialEq)]
pub struct Novelty {
    /// Mean of each feature in training.
    pub mean: Vec<f32>,
    /// Standard deviation of each; positive.
    pub scale: Vec<f32>,
    /// Windows, on that scale.
    pub known: Vec<Vec<f32>>,
    /// From this distance on a window is unlike all of them.
    pub threshold: f32,
}

impl Novelty {
    pub(super) fn fits(&self, features: usize) -> bool {
        self.mean.len() == features
            && self.scale.len() == features
            && self.mean.iter().all(|x| x.is_finite())
            && self.scale.iter().all(|x| x.is_finite() && *x > 0.0)
            && self.threshold.is_finite()
            && self.known.iter().all(|row| {
                row.len() == features && row.iter().all(|x| x.is_finite() && x.abs() < 1e6)
            })
    }

    /// On the scale of training.
    pub(crate) fn standard(&self, x: &[f32]) -> Vec<f32> {
        let numbers = self.mean.iter().zip(&self.scale);
        x.iter()
            .zip(numbers)
            .map(|(x, (mean, scale))| standard(*x, *mean, *scale))
            .collect()
    }

    /// Distance from what is nearest, per feature: about 1 for windows that have nothing to do with each other. 0 if nothing is known.
    pub fn distance(&self, x: &[f32]) -> f32 {
        let x = self.standard(x);
        let nearest = self.known.iter().map(|known| distance(known, &x));
        nearest.reduce(f32::min).unwrap_or(0.0)
    }
}

/// Root of the mean square of differences.
#[allow(clippy::cast_precision_loss, reason = "some hundred features")]
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    let squares: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / a.len().max(1) as f32).sqrt()
}
