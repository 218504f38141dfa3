//! Makes the map of an overlay anew from the slabs that an earlier process has left. What the records say was written by a gateway, but they
//! are looked at as any other input.

use std::sync::Arc;

use super::super::arena::{Home, Kind, Record};
use super::super::budget::Budget;
use super::super::slabs::Slab;
use super::buffers::Buffers;
use super::region::What;
use super::{Overlay, pieces};

/// A record that can't be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record of held writes is damaged: {len} bytes at {offset}")]
pub struct NotRevived {
    offset: u64,
    len: u64,
}

impl Overlay {
    /// The overlay of `home`, on a disk of `size` bytes, whose slabs and their records these are.
    ///
    /// # Errors
    /// [`NotRevived`]: a record reaches beyond its slab or the disk.
    pub fn revive(
        budget: &Arc<Budget>,
        home: Home,
        size: u64,
        slabs: Vec<(Slab, Vec<Record>)>,
    ) -> Result<Self, NotRevived> {
        let mut this = Self::new(budget, home);
        let mut all = Vec::new();
        for (slab, records) in slabs {
            check(&records, size, slab.bytes().len())?;
            let data = |record: &Record| match record.kind {
                Kind::Data { .. } => record.len,
                Kind::Cleared(_) => 0,
            };
            let clears = records
                .iter()
                .any(|record| matches!(record.kind, Kind::Cleared(_)));
            if records.is_empty() {
                continue;
            }
            let number = this
                .buffers
                .adopt(slab, records.iter().map(data).sum(), clears);
            all.extend(records.into_iter().map(|record| (number, record)));
        }
        all.sort_unstable_by_key(|(_, record)| record.sequence);
        for (number, record) in &all {
            match record.kind {
                Kind::Data { at } => {
                    let mut place = Buffers::place(*number, at);
                    for piece in pieces(record.offset, record.len) {
                        this.put(piece, What::Data(place));
                        place = place.later(piece.len);
                    }
                }
                Kind::Cleared(clear) => this.put_clear(record.offset, record.len, clear),
            }
        }
        if let Some((_, last)) = all.last() {
            this.buffers.go_on_at(last.sequence);
        }
        this.update_charge();
        Ok(this)
    }
}

fn check(records: &[Record], size: u64, slab: usize) -> Result<(), NotRevived> {
    let inside = |record: &Record| {
        let on_disk = record
            .offset
            .checked_add(record.len)
            .is_some_and(|end| end <= size);
        let in_slab = match record.kind {
            Kind::Data { at } => u64::from(at) + record.len <= slab as u64,
            Kind::Cleared(_) => true,
        };
        on_disk && in_slab
    };
    match records.iter().find(|record| !inside(record)) {
        Some(record) => Err(NotRevived {
            offset: record.offset,
            len: record.len,
        }),
        None => Ok(()),
    }
}
