//! Numbers and lines as people read them.

use coordinator::report::Stamped;

/// Bytes with a binary unit: `1.5 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}

/// An export's name; the default export has the empty one.
pub(crate) fn shown(name: &str) -> &str {
    if name.is_empty() { "\"\"" } else { name }
}

/// Microseconds as milliseconds with two digits.
#[allow(clippy::cast_precision_loss, reason = "shown with two digits")]
pub(crate) fn millis(us: u64) -> f64 {
    (us as f64 / 10.0).round() / 100.0
}

/// Writes an event as one line of JSON. A reader that went away is no reason to stop protecting a VM.
pub(crate) fn event_line(event: &Stamped) {
    use std::io::Write;
    if let Ok(mut line) = serde_json::to_vec(event) {
        line.push(b'\n');
        let _ = std::io::stdout().lock().write_all(&line);
    }
}

/// The p-th percentile (0 to 100) of values that are sorted; zero if there are none.
pub(crate) fn percentile(sorted: &[u64], p: usize) -> u64 {
    match sorted.len() {
        0 => 0,
        n => sorted[((n * p).div_ceil(100)).clamp(1, n) - 1],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<u64> = (1..=200).collect();
        assert_eq!(percentile(&values, 50), 100);
        assert_eq!(percentile(&values, 99), 198);
        assert_eq!(percentile(&values, 100), 200);
        assert_eq!(percentile(&[], 50), 0);
        assert_eq!(percentile(&[7], 99), 7);
    }
}
