//! How a pause grows with RAM: the slope of the line that fits best.

/// Milliseconds per GiB, from pairs of GiB and milliseconds; None if there is one size only.
#[allow(clippy::cast_precision_loss, reason = "a handful of sizes")]
pub(super) fn per_gib(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let (sum_x, sum_y) = points
        .iter()
        .fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (mean_x, mean_y) = (sum_x / count, sum_y / count);
    let (mut above, mut below) = (0.0, 0.0);
    for (x, y) in points {
        above += (x - mean_x) * (y - mean_y);
        below += (x - mean_x).powi(2);
    }
    (below > 0.0).then(|| above / below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_own_slope() {
        assert_eq!(per_gib(&[]), None);
        assert_eq!(per_gib(&[(0.5, 2.0), (0.5, 3.0)]), None);
        let slope = per_gib(&[(0.5, 2.25), (1.0, 2.5), (4.0, 4.0)]);
        assert!(slope.is_some_and(|slope| (slope - 0.5).abs() < 1e-9));
    }
}
