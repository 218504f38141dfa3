//! The count alone, for figures: as the judge of a VM counts, of plain scores.

use std::collections::VecDeque;

/// Counts windows.
#[derive(Debug, Clone)]
pub struct Panel {
    k: usize,
    n: usize,
    alarm: f32,
    still_faulty: f32,
    last: VecDeque<f32>,
    ill: bool,
}

impl Panel {
    /// `k` of `n`; a panel of none is one of one. A window is against a VM from `alarm` on, against one that is ill already from `still_faulty` on.
    pub fn new(k: u32, n: u32, alarm: f32, still_faulty: f32) -> Self {
        let of = |x: u32| usize::try_from(x).unwrap_or(usize::MAX).max(1);
        Self {
            k: of(k),
            n: of(n),
            alarm,
            still_faulty,
            last: VecDeque::new(),
            ill: false,
        }
    }

    /// The score of one window more. True: the VM is ill, as far as the last n windows tell; until enough of them agree it stays what it was.
    pub fn push(&mut self, score: f32) -> bool {
        self.last.push_back(score);
        if self.last.len() > self.n {
            self.last.pop_front();
        }
        let from = if self.ill {
            self.still_faulty
        } else {
            self.alarm
        };
        let against = self.last.iter().filter(|score| **score >= from).count();
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
        let mut panel = Panel::new(3, 4, 0.8, 0.4);
        let said: Vec<bool> = [0.9, 0.9, 0.1, 0.8, 0.8, 0.5, 0.4, 0.1, 0.1, 0.1]
            .map(|score| panel.push(score))
            .to_vec();
        let expected = [
            false, false, false, true, true, true, true, true, true, false,
        ];
        assert_eq!(said, expected);
    }
}
