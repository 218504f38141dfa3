//! Dirty pages, as windows of a second that somebody else has put together: a watch of our own, or the process that protects the VM.

use std::time::{Duration, Instant};

use qemu_glue::DirtySummary;

use super::Values;
use super::growth::single;
use crate::signals::Signal;

/// How old a window may be beyond twice its own length.
const GRACE: Duration = Duration::from_millis(500);

/// Remembers which window was seen last, and when it was new.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    last: Option<(u64, Instant)>,
}

impl Dirty {
    /// `newest` is the last window that is over. One that has not been followed by another in time says nothing any more.
    pub(crate) fn sample(
        &mut self,
        newest: Option<DirtySummary>,
        now: Instant,
        values: &mut Values,
    ) {
        let Some(window) = newest else { return };
        let since = match self.last {
            Some((number, since)) if number == window.number => since,
            _ => now,
        };
        self.last = Some((window.number, since));
        let length = Duration::from_millis(window.window_ms);
        if now.saturating_duration_since(since) > length * 2 + GRACE {
            return;
        }
        let share = |part: u64, whole: u64| match whole {
            0 => 0.0,
            whole => part as f64 / whole as f64,
        };
        let pages = window.pages as f64 / length.as_secs_f64().max(0.001);
        values.set(Signal::DirtyPages, single(pages));
        values.set(
            Signal::DirtyShare,
            single(pages / window.ram_pages.max(1) as f64),
        );
        values.set(
            Signal::DirtyRegions,
            single(share(window.regions, window.ram_regions)),
        );
        values.set(Signal::DirtyEntropy, single(window.entropy));
        values.set(Signal::DirtyRun, single(share(window.pages, window.runs)));
        let repeat = window
            .repeated
            .map(|repeated| single(share(repeated, window.pages)));
        values.set(Signal::DirtyRepeat, repeat);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_that_nobody_follows_gets_old() {
        let window = DirtySummary {
            number: 1,
            window_ms: 1_000,
            pages: 512,
            ram_pages: 32_768,
            regions: 16,
            ram_regions: 64,
            runs: 128,
            repeated: None,
            entropy: 0.25,
        };
        let began = Instant::now();
        let mut dirty = Dirty::default();
        let mut at = |window: DirtySummary, ms: u64| {
            let mut values = Values::MISSING;
            dirty.sample(Some(window), began + Duration::from_millis(ms), &mut values);
            values
        };
        let values = at(window, 0);
        assert_eq!(values.get(Signal::DirtyPages), Some(512.0));
        assert_eq!(values.get(Signal::DirtyShare), Some(1.0 / 64.0));
        assert_eq!(values.get(Signal::DirtyRegions), Some(0.25));
        assert_eq!(values.get(Signal::DirtyRun), Some(4.0));
        assert_eq!(values.get(Signal::DirtyRepeat), None);
        assert!(at(window, 2_400).get(Signal::DirtyPages).is_some());
        assert_eq!(at(window, 2_600), Values::MISSING);
        let next = DirtySummary {
            number: 2,
            repeated: Some(128),
            window_ms: 2_000,
            ..window
        };
        let values = at(next, 2_700);
        assert_eq!(values.get(Signal::DirtyPages), Some(256.0));
        assert_eq!(values.get(Signal::DirtyRepeat), Some(0.25));
    }
}
