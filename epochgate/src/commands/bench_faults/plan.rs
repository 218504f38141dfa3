//! Which cell is run next: the one that has had the fewest runs, at random among equals. Runs that said nothing are run again.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::cells::Cell;

/// A cell that says nothing so often in a row is left alone: the machine is too busy for it.
const VOIDS: u32 = 3;

/// How long the matrix goes on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    /// So many runs more.
    Runs(u64),
    /// Every cell has had so many.
    PerCell(u64),
}

/// What is still to be run.
#[derive(Debug)]
pub(super) struct Plan {
    open: Vec<Open>,
    until: Until,
    rng: StdRng,
    /// Given to the first run as it is, so that a single run can be repeated.
    seed: Option<u64>,
    left_alone: u64,
}

#[derive(Debug)]
struct Open {
    cell: Cell,
    runs: u64,
    voids: u32,
}

impl Plan {
    /// A plan over `cells`, which have had so many runs each.
    pub(super) fn new(cells: impl Iterator<Item = (Cell, u64)>, until: Until, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut open: Vec<Open> = cells
            .map(|(cell, runs)| Open {
                cell,
                runs,
                voids: 0,
            })
            .collect();
        open.shuffle(&mut rng);
        Self {
            open,
            until,
            rng,
            seed: Some(seed),
            left_alone: 0,
        }
    }

    /// How many runs are left, those under way not counted.
    pub(super) fn left(&self) -> u64 {
        match self.until {
            Until::Runs(left) if !self.open.is_empty() => left,
            Until::Runs(_) => 0,
            Until::PerCell(each) => {
                let left = self.open.iter().map(|open| each.saturating_sub(open.runs));
                left.sum()
            }
        }
    }

    /// The next run: a cell, and the seed of its random choices.
    pub(super) fn next(&mut self) -> Option<(Cell, u64)> {
        if self.left() == 0 {
            return None;
        }
        let next = self.open.iter_mut().min_by_key(|open| open.runs)?;
        next.runs += 1;
        if let Until::Runs(left) = &mut self.until {
            *left -= 1;
        }
        let seed = self.seed.take().unwrap_or_else(|| self.rng.random());
        Some((next.cell, seed))
    }

    /// A run of this cell said nothing.
    pub(super) fn void(&mut self, cell: &Cell) {
        let Some(at) = self.open.iter().position(|open| open.cell == *cell) else {
            return;
        };
        self.open[at].runs -= 1;
        self.open[at].voids += 1;
        if let Until::Runs(left) = &mut self.until {
            *left += 1;
        }
        if self.open[at].voids >= VOIDS {
            self.open.swap_remove(at);
            self.left_alone += 1;
        }
    }

    /// How many cells were left alone.
    pub(super) fn left_alone(&self) -> u64 {
        self.left_alone
    }

    /// A run of this cell said something.
    pub(super) fn said(&mut self, cell: &Cell) {
        if let Some(open) = self.open.iter_mut().find(|open| open.cell == *cell) {
            open.voids = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cells;
    use super::*;

    fn cells(runs: &[u64]) -> Vec<(Cell, u64)> {
        cells::all().into_iter().zip(runs.iter().copied()).collect()
    }

    fn rest(plan: &mut Plan) -> Vec<Cell> {
        std::iter::from_fn(|| plan.next().map(|(cell, _)| cell)).collect()
    }

    #[test]
    fn the_least_run_cells_come_first() {
        let three = cells(&[4, 0, 2]);
        let mut plan = Plan::new(three.clone().into_iter(), Until::Runs(4), 1);
        let order = rest(&mut plan);
        assert_eq!(order[..2], [three[1].0; 2]);
        assert_eq!(order.len(), 4);
        let mut plan = Plan::new(three.into_iter(), Until::PerCell(3), 1);
        assert_eq!((plan.left(), rest(&mut plan).len()), (4, 4));
    }

    #[test]
    fn the_seed_is_that_of_the_first_run() {
        let one = cells(&[0]);
        let mut plan = Plan::new(one.into_iter(), Until::Runs(2), 77);
        assert_eq!(plan.next().map(|(_, seed)| seed), Some(77));
        assert_ne!(plan.next().map(|(_, seed)| seed), Some(77));
    }

    #[test]
    fn a_run_that_said_nothing_is_run_again_but_not_for_ever() {
        let one = cells(&[0]);
        let mut plan = Plan::new(one.into_iter(), Until::PerCell(1), 1);
        for _ in 0..VOIDS {
            let next = plan.next();
            assert!(next.is_some());
            if let Some((cell, _)) = next {
                plan.void(&cell);
            }
        }
        assert_eq!((plan.left(), rest(&mut plan).len()), (0, 0));
        assert_eq!(plan.left_alone(), 1);
    }
}
