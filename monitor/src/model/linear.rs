//! A weighted sum of features that were brought to one scale.

/// Weights of logistic regression.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Mean of each feature in training.
    pub mean: Vec<f32>,
    /// Standard deviation of each; positive.
    pub scale: Vec<f32>,
    /// What each counts.
    pub weights: Vec<f32>,
    /// The score of the mean, as logarithm of the odds.
    pub intercept: f32,
}

/// Farther from the mean, in standard deviations, nothing counts more: one wild feature does not outvote all others.
const FAR: f32 = 8.0;

/// `x` on the scale of training.
pub(crate) fn standard(x: f32, mean: f32, scale: f32) -> f32 {
    ((x - mean) / scale).clamp(-FAR, FAR)
}

impl Linear {
    /// Whether it is of so many features, and its numbers are numbers.
    pub(super) fn fits(&self, features: usize) -> bool {
        let all = [&self.mean, &self.scale, &self.weights];
        all.iter().all(|of| of.len() == features)
            && all.iter().all(|of| of.iter().all(|x| x.is_finite()))
            && self.scale.iter().all(|scale| *scale > 0.0)
            && self.intercept.is_finite()
    }

    pub(super) fn contributions(&self, x: &[f32]) -> Vec<f32> {
        let numbers = self.mean.iter().zip(&self.scale).zip(&self.weights);
        x.iter()
            .zip(numbers)
            .map(|(x, ((mean, scale), weight))| weight * standard(*x, *mean, *scale))
            .collect()
    }

    /// 0 to 1.
    pub(super) fn score(&self, x: &[f32]) -> f32 {
        let odds = self.intercept + self.contributions(x).iter().sum::<f32>();
        // Sums of huge weights of a hostile file may be no number.
        let score = 1.0 / (1.0 + (-odds).exp());
        if score.is_nan() { 0.5 } else { score }
    }

    pub(super) fn weights(&self) -> Vec<f32> {
        self.weights.iter().map(|weight| weight.abs()).collect()
    }
}
