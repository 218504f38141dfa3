//! Figures of scores against labels. Knows no windows.

/// How often a label was right or wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Faulty, and said so.
    pub hits: u64,
    /// Normal, and called faulty.
    pub false_alarms: u64,
    /// Faulty, and called normal.
    pub misses: u64,
    /// Normal, and said so.
    pub rests: u64,
}

impl Counts {
    /// One more.
    pub fn add(&mut self, faulty: bool, said: bool) {
        let slot = match (faulty, said) {
            (true, true) => &mut self.hits,
            (false, true) => &mut self.false_alarms,
            (true, false) => &mut self.misses,
            (false, false) => &mut self.rests,
        };
        *slot += 1;
    }

    /// Of those called faulty, the part that is. 0 if none was called so while some are.
    pub fn precision(&self) -> Option<f64> {
        match self.hits + self.false_alarms {
            0 => (self.misses > 0).then_some(0.0),
            said => Some(share(self.hits, said)),
        }
    }

    /// Of the faulty ones, the part that was called so. None if there are none.
    pub fn recall(&self) -> Option<f64> {
        let faulty = self.hits + self.misses;
        (faulty > 0).then(|| share(self.hits, faulty))
    }

    /// The harmonic mean of both. None if there are no faulty ones.
    pub fn f1(&self) -> Option<f64> {
        self.recall()?;
        Some(share(
            2 * self.hits,
            2 * self.hits + self.false_alarms + self.misses,
        ))
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts of windows")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// The curve of false alarms against hits, as shares, from (0, 0) to (1, 1). Empty unless there are both labels.
#[allow(clippy::cast_precision_loss, reason = "counts of windows")]
pub fn roc(scored: &[(f32, bool)]) -> Vec<(f64, f64)> {
    let faulty = scored.iter().filter(|(_, faulty)| *faulty).count();
    let normal = scored.len() - faulty;
    if faulty == 0 || normal == 0 {
        return Vec::new();
    }
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut curve = vec![(0.0, 0.0)];
    let (mut hits, mut wrong) = (0_usize, 0_usize);
    for (at, (score, is)) in sorted.iter().enumerate() {
        if *is {
            hits += 1
        } else {
            wrong += 1
        }
        // Those with the same score are called faulty together.
        if sorted.get(at + 1).is_none_or(|next| next.0 < *score) {
            curve.push((wrong as f64 / normal as f64, hits as f64 / faulty as f64));
        }
    }
    curve
}

/// Area under that curve: how likely a faulty window has a higher score than a normal one. None unless there are both labels.
pub fn auc(scored: &[(f32, bool)]) -> Option<f64> {
    let curve = roc(scored);
    let area = |two: &[(f64, f64)]| (two[1].0 - two[0].0) * (two[0].1 + two[1].1) / 2.0;
    (!curve.is_empty()).then(|| curve.windows(2).map(area).sum())
}

/// The threshold with the best F1, and that F1. In the middle between two scores. None if there are no faulty ones.
pub fn best_threshold(scored: &[(f32, bool)]) -> Option<(f32, f64)> {
    let mut sorted = scored.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut counts = Counts::default();
    for (_, faulty) in &sorted {
        counts.add(*faulty, false);
    }
    let mut best: Option<(f32, f64)> = None;
    for (at, (score, faulty)) in sorted.iter().enumerate() {
        if *faulty {
            (counts.hits, counts.misses) = (counts.hits + 1, counts.misses - 1);
        } else {
            (counts.false_alarms, counts.rests) = (counts.false_alarms + 1, counts.rests - 1);
        }
        let next = sorted.get(at + 1).map(|next| next.0);
        if next.is_some_and(|next| next >= *score) {
            continue;
        }
        let f1 = counts.f1()?;
        if best.is_none_or(|(_, most)| f1 > most) {
            best = Some((next.map_or(*score, |next| f32::midpoint(next, *score)), f1));
        }
    }
    best
}

/// Mean and standard deviation; None of nothing.
#[allow(clippy::cast_precision_loss, reason = "some folds")]
pub fn mean_and_spread(values: &[f64]) -> Option<(f64, f64)> {
    if values.is_empty() {
        return None;
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>();
    Some((mean, (squares / count).sqrt()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_books() {
        let scored = [
            (0.9, true),
            (0.8, true),
            (0.7, false),
            (0.6, true),
            (0.2, false),
        ];
        // Of six pairs five are in order.
        assert!((auc(&scored).unwrap() - 5.0 / 6.0).abs() < 1e-9);
        let (threshold, f1) = best_threshold(&scored).unwrap();
        assert!(threshold > 0.2 && threshold < 0.6);
        assert!((f1 - 6.0 / 7.0).abs() < 1e-9);
        assert_eq!(auc(&[(0.5, true)]), None);
        assert_eq!(auc(&[(0.5, true), (0.5, false)]), Some(0.5));
        let mut counts = Counts::default();
        for (score, faulty) in scored {
            counts.add(faulty, score > 0.65);
        }
        assert_eq!((counts.hits, counts.misses), (2, 1));
        assert_eq!((counts.false_alarms, counts.rests), (1, 1));
        assert!((counts.precision().unwrap() - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(Counts::default().f1(), None);
        assert_eq!(mean_and_spread(&[1.0, 3.0]), Some((2.0, 1.0)));
    }
}
