//! Counters that only grow, until whoever counts starts anew.

/// The counters of one source, which start anew together.
#[derive(Debug)]
pub(crate) struct Growth<const N: usize> {
    last: Option<[u64; N]>,
}

impl<const N: usize> Default for Growth<N> {
    fn default() -> Self {
        Self { last: None }
    }
}

impl<const N: usize> Growth<N> {
    /// What each has grown by since the last call. None at the first one, and if any is less than before: then what happened in between
    /// is not known.
    pub(crate) fn step(&mut self, now: [u64; N]) -> Option<[u64; N]> {
        let last = self.last.replace(now)?;
        let mut grown = [0; N];
        for (grown, (now, last)) in grown.iter_mut().zip(now.iter().zip(last)) {
            *grown = now.checked_sub(last)?;
        }
        Some(grown)
    }

    /// The next call is a first one: in between somebody else may have counted.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}

/// With the precision that samples have.
#[allow(
    clippy::cast_possible_truncation,
    reason = "no measured value is near the bounds of an f32"
)]
pub(crate) fn single(value: f64) -> f32 {
    value as f32
}

/// A difference in relation to a time, as samples hold it.
pub(crate) fn per(grown: u64, time: f64) -> f32 {
    single(grown as f64 / time)
}

/// Mean time in milliseconds of so many requests that took so long together; 0 if there were none.
pub(crate) fn mean_ms(nanos: u64, requests: u64) -> f32 {
    match requests {
        0 => 0.0,
        requests => single(nanos as f64 / requests as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_that_starts_anew_gives_nothing_once() {
        let mut growth = Growth::default();
        assert_eq!(growth.step([10, 5]), None);
        assert_eq!(growth.step([13, 5]), Some([3, 0]));
        assert_eq!(growth.step([2, 6]), None);
        assert_eq!(growth.step([4, 6]), Some([2, 0]));
        growth.forget();
        assert_eq!(growth.step([5, 6]), None);
    }
}
