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

/// Seconds since 1970 as date and time of day.
pub(crate) fn utc(seconds: u64) -> String {
    // Days in eras of 400 years that begin with a March, so that a leap day is the last of its year.
    let (days, time) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (
        of_year - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
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

/// Microseconds in milliseconds, as the JSON of benches has them: `p50`, `p99`, `max`.
pub(crate) fn spread(mut us: Vec<u64>) -> serde_json::Value {
    us.sort_unstable();
    serde_json::json!({
        "p50": millis(percentile(&us, 50)),
        "p99": millis(percentile(&us, 99)),
        "max": millis(percentile(&us, 100)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_764_058_620, "2025-11-25 08:17:00 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }

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
