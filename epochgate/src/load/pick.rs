//! Which block a request goes to. Two requests never touch one block at the same time unless both only read: so what a
//! read must find is always known. Knows no sockets.

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::{Load, Order};

/// Chooses blocks and remembers which have a request in flight.
#[derive(Debug)]
pub(crate) struct Picker {
    first: u64,
    block: u64,
    blocks: usize,
    order: Order,
    read_percent: u32,
    shuffled: Vec<u32>,
    /// Next position per connection (sequential) or of all together (shuffled).
    next: Vec<usize>,
    /// One flag per block; empty if nothing is written.
    busy: Vec<bool>,
    rng: StdRng,
}

impl Picker {
    /// A picker for `load`. The area must have more blocks than there are requests in flight.
    pub(crate) fn new(load: &Load) -> anyhow::Result<Self> {
        let block = load.block as u64;
        let blocks = usize::try_from((load.area.end - load.area.start) / block)?;
        anyhow::ensure!(
            blocks > load.connections * load.depth,
            "an area of {blocks} blocks is too small for {} requests in flight",
            load.connections * load.depth
        );
        let mut rng = StdRng::seed_from_u64(load.seed);
        let mut shuffled = Vec::new();
        if load.order == Order::Shuffled {
            shuffled = (0..u32::try_from(blocks)?).collect();
            shuffled.shuffle(&mut rng);
        }
        Ok(Self {
            first: load.area.start,
            block,
            blocks,
            order: load.order,
            read_percent: load.read_percent,
            shuffled,
            next: (0..load.connections)
                .map(|connection| connection * blocks / load.connections)
                .collect(),
            busy: if load.read_percent < 100 {
                vec![false; blocks]
            } else {
                Vec::new()
            },
            rng,
        })
    }

    /// Whether the next request reads.
    pub(crate) fn reads(&mut self) -> bool {
        match self.read_percent {
            0 => false,
            100 => true,
            percent => self.rng.random_range(0..100) < percent,
        }
    }

    /// The offset of the next request of a connection; it is busy until [`Picker::done`].
    pub(crate) fn pick(&mut self, connection: usize) -> u64 {
        let mut index = match self.order {
            Order::Random => self.rng.random_range(0..self.blocks),
            Order::Sequential => self.advance(connection),
            Order::Shuffled => {
                let position = self.advance(0);
                self.shuffled
                    .get(position)
                    .map_or(0, |index| *index as usize)
            }
        };
        // Ends, as there are more blocks than requests in flight.
        while self.busy.get(index) == Some(&true) {
            index = (index + 1) % self.blocks;
        }
        if let Some(busy) = self.busy.get_mut(index) {
            *busy = true;
        }
        self.first + index as u64 * self.block
    }

    fn advance(&mut self, connection: usize) -> usize {
        let Some(next) = self.next.get_mut(connection) else {
            return 0;
        };
        let now = *next;
        *next = (now + 1) % self.blocks;
        now
    }

    /// The request at `offset` was answered.
    pub(crate) fn done(&mut self, offset: u64) {
        let index = (offset - self.first) / self.block;
        if let Ok(index) = usize::try_from(index)
            && let Some(busy) = self.busy.get_mut(index)
        {
            *busy = false;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn load(order: Order) -> Load {
        Load {
            order,
            read_percent: 0,
            depth: 4,
            connections: 2,
            area: 8192..8192 + 16 * 4096,
            ..Load::new(0)
        }
    }

    #[test]
    fn no_block_is_picked_twice_while_it_is_busy() {
        for order in [Order::Random, Order::Sequential, Order::Shuffled] {
            let mut picker = Picker::new(&load(order)).unwrap();
            let mut seen: Vec<u64> = (0..16).map(|i| picker.pick(i % 2)).collect();
            seen.sort_unstable();
            let all: Vec<u64> = (0..16).map(|i| 8192 + i * 4096).collect();
            assert_eq!(seen, all, "{order:?}");
            picker.done(8192 + 5 * 4096);
            assert_eq!(picker.pick(0), 8192 + 5 * 4096);
        }
    }

    #[test]
    fn an_area_too_small_for_the_depth_is_refused() {
        let load = Load {
            area: 0..8 * 4096,
            ..load(Order::Random)
        };
        assert!(Picker::new(&load).is_err());
    }
}
