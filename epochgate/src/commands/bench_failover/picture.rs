//! How the times of failovers are distributed, as bars: how many runs took so long.

use crate::bench::plot::{Bar, Panel, Tone};

/// Bars at most.
const MOST: u64 = 20;
/// Widths of a bar in milliseconds, the narrowest that comes out with few enough bars is taken.
const WIDTHS: [u64; 9] = [1, 2, 5, 10, 20, 50, 100, 200, 500];

/// One panel each, from times in microseconds.
pub(super) fn panels(detect: &[u64], resume: &[u64], failover: &[u64]) -> Vec<Panel> {
    [
        ("kill to the guest running", failover, Tone::Ours),
        ("kill to suspicion", detect, Tone::Floor),
        ("suspicion to the guest running", resume, Tone::Floor),
    ]
    .into_iter()
    .filter(|(_, times, _)| !times.is_empty())
    .map(|(what, times, tone)| Panel {
        title: format!("{what}: runs by milliseconds"),
        bars: histogram(times)
            .into_iter()
            .map(|(name, runs)| Bar::new(name, f64::from(runs), tone))
            .collect(),
    })
    .collect()
}

/// From the shortest time to the longest, no gap left out.
fn histogram(times: &[u64]) -> Vec<(String, u32)> {
    let ms = |us: &u64| us / 1000;
    let low = times.iter().map(ms).min().unwrap_or(0);
    let high = times.iter().map(ms).max().unwrap_or(0);
    let fits = |width: &u64| high / width - low / width < MOST;
    let width = WIDTHS.into_iter().find(fits).unwrap_or(1000);
    (low / width..=high / width)
        .map(|bin| {
            let within = times.iter().map(ms).filter(|ms| ms / width == bin);
            let name = format!("{} to {} ms", bin * width, (bin + 1) * width);
            (name, u32::try_from(within.count()).unwrap_or(u32::MAX))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_is_in_one_bar() {
        let times = [60_100, 61_900, 63_000, 95_000, 140_000];
        let bars = histogram(&times);
        assert!(bars.len() as u64 <= MOST, "{bars:?}");
        assert_eq!(bars.iter().map(|bar| bar.1).sum::<u32>(), 5);
        assert_eq!(bars.first(), Some(&("60 to 65 ms".to_owned(), 3)));
        assert_eq!(histogram(&[7_000]), [("7 to 8 ms".to_owned(), 1)]);
    }
}
