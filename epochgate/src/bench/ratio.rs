//! Medians and ratios with their spread. A ratio is taken within one repetition, where both sides ran side by side, and
//! only then summed up: so what the machine did meanwhile touches both.

use serde::Serialize;

/// Values of several repetitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Median, smallest and largest; none if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let upper = *values.get(middle)?;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(*values.get(middle - 1)?, upper)
        } else {
            upper
        };
        Some(Self { median, min, max })
    }

    /// Ratios of two series, repetition by repetition.
    pub(crate) fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let pairs = ours.iter().zip(theirs).filter(|(_, theirs)| **theirs > 0.0);
        Self::of(pairs.map(|(ours, theirs)| ours / theirs))
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios() {
        assert_eq!(Spread::of([]), None);
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]);
        let want = Spread {
            median: 2.5,
            min: 1.0,
            max: 4.0,
        };
        assert_eq!(spread, Some(want));
        let ratios = Spread::of_ratios(&[2.0, 6.0, 3.0], &[1.0, 2.0, 0.0]);
        assert_eq!(ratios.map(|r| r.median), Some(2.5));
    }
}
