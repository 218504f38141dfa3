//! The count alone, for thresholds and figures: k of the last n windows must agree, both ways, as for the judge of a VM.

use std::collections::VecDeque;

/// Counts windows. Knows no scores.
#[derive(Debug, Clone)]
pub struct Panel {
    k: usize,
    n: usize,
    last: VecDeque<bool>,
    ill: bool,
}

impl Panel {
    /// `k` of `n`; a panel of none is one of one.
    pub fn new(k: u32, n: u32) -> Self {
        let of = |x: u32| usize::try_from(x).unwrap_or(usize::MAX).max(1);
        Self {
            k: of(k),
            n: of(n),
            last: VecDeque::new(),
            ill: false,
        }
    }

    /// One window more. True: the VM is ill, as far as the last n windows tell; until enough of them agree it stays what it was.
    pub fn push(&mut self, counts: bool) -> bool {
        self.last.push_back(counts);
        if self.last.len() > self.n {
            self.last.pop_front();
        }
        let against = self.last.iter().filter(|counts| **counts).count();
        if against >= self.k {
            self.ill = true;
        } else if self.last.len() - against >= self.k {
            self.ill = false;
        }
        self.ill
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_k_of_n_both_ways() {
        let mut panel = Panel::new(3, 4);
        let said: Vec<bool> = [true, true, false, true, true, false, false, false]
            .map(|counts| panel.push(counts))
            .to_vec();
        assert_eq!(said, [false, false, false, true, true, true, true, false]);
    }
}
