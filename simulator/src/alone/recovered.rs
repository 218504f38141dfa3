//! What a crash has left of a group without a source: whether the rules allow it, and what is the truth from then on.

use nbd_server::export::Export;
use nbd_server::group::GroupMode;

use super::{Alone, Write};
use crate::blocks::{PLACES, Stamp, UNIT, fill, position, shown, stamps};
use crate::{Violation, violation};

impl Alone<'_> {
    /// What a crash has left must be what the rules allow; from here on it is the truth. The gateway that has been started is in mode `next`.
    pub(super) fn compare(&mut self, next: GroupMode) -> Result<(), Violation> {
        let mut found = Vec::with_capacity(PLACES);
        let mut unit = vec![0; UNIT];
        for place in 0..PLACES {
            let (disk, offset) = position(place);
            if let Err(error) = self.exports[disk].read(offset, &mut unit) {
                return violation!("unit {place} can't be read: {error}");
            }
            found.push(stamps(place, &unit));
        }
        let turns = self.mode == GroupMode::Sync && next == GroupMode::Async;
        match self.mode {
            GroupMode::Async => self.find_prefix(&found)?,
            GroupMode::Sync => self.find_each(&found)?,
        }
        // What a process left in memory is there, and no more durable than before.
        if self.power_lost || self.mode == GroupMode::Async && !self.host.keeps_memory() {
            self.dropped += self.history.len() as u64;
            self.history.clear();
            self.newest.clone_from(&self.floor);
        } else if turns {
            // What went through to the images is older than all that is held now.
            self.dropped += self.history.len() as u64;
            self.history.clear();
            self.floor.clone_from(&self.newest);
        }
        self.write_over_torn(&found, self.power_lost || turns)
    }

    fn find_prefix(&mut self, found: &[[Option<Stamp>; 2]]) -> Result<(), Violation> {
        let fits = |place: usize, stamp: Stamp| found[place] == [Some(shown(stamp)); 2];
        let mut wrong = (0..PLACES)
            .filter(|place| !fits(*place, self.floor[*place]))
            .count();
        let mut best = None;
        let mut table = self.floor.clone();
        for (number, write) in self.history.iter().enumerate() {
            if wrong == 0 {
                best = Some((number, table.clone()));
            }
            for (place, stamp) in table
                .iter_mut()
                .enumerate()
                .skip(write.place)
                .take(write.count)
            {
                wrong -= usize::from(!fits(place, *stamp));
                *stamp = write.stamp;
                wrong += usize::from(!fits(place, *stamp));
            }
        }
        if wrong == 0 {
            best = Some((self.history.len(), table));
        }
        match best {
            Some((kept, table)) => {
                let of = self.history.len();
                // The last write may have failed.
                if self.host.keeps_memory() && !self.power_lost && kept + 1 < of {
                    return violation!("only {kept} of {of} writes outlived the gateway's process");
                }
                self.trace.note(
                    self.now,
                    format_args!("recovered {kept} of {of} writes after the last flush"),
                );
                self.trace.reach("recovery");
                if self.host.keeps_memory() && !self.power_lost {
                    self.history.truncate(kept);
                    self.newest = table;
                } else {
                    self.floor = table;
                }
                Ok(())
            }
            None => violation!(
                "the disks are nothing that the writes since the last flush lead to: {:?}",
                (0..PLACES)
                    .filter(|place| !fits(*place, self.newest[*place]))
                    .map(|place| (place, found[place], self.floor[place], self.newest[place]))
                    .collect::<Vec<_>>()
            ),
        }
    }

    fn find_each(&mut self, found: &[[Option<Stamp>; 2]]) -> Result<(), Violation> {
        self.trace.reach("recovery");
        let mut again = Vec::new();
        for (place, sectors) in found.iter().enumerate() {
            let later = self
                .history
                .iter()
                .filter(|write| (write.place..write.place + write.count).contains(&place));
            let later: Vec<Stamp> = later.map(|write| write.stamp).collect();
            let allowed = [&[self.floor[place]], later.as_slice()].concat();
            for sector in sectors {
                if !allowed.iter().any(|stamp| Some(shown(*stamp)) == *sector) {
                    return violation!(
                        "unit {place} shows {sectors:?}, and may show one of {allowed:?}"
                    );
                }
            }
            if sectors[0] == sectors[1] {
                let found = later
                    .last()
                    .filter(|stamp| Some(shown(**stamp)) == sectors[0]);
                self.newest[place] = found.copied().or(sectors[0]).unwrap_or_default();
                if self.power_lost {
                    self.floor[place] = self.newest[place];
                } else if found.is_none() {
                    // A write that failed is not there, but in the history.
                    again.push(Write {
                        place,
                        count: 1,
                        stamp: self.newest[place],
                    });
                }
            }
        }
        self.history.append(&mut again);
        Ok(())
    }

    /// Nobody reads a torn unit: it is written over before; `for_good` where what was found there would come again.
    fn write_over_torn(
        &mut self,
        found: &[[Option<Stamp>; 2]],
        for_good: bool,
    ) -> Result<(), Violation> {
        for (place, sectors) in found.iter().enumerate() {
            if sectors[0] == sectors[1] {
                continue;
            }
            self.next_stamp += 1;
            let mut unit = vec![0; UNIT];
            fill(self.next_stamp, place, &mut unit);
            let (disk, offset) = position(place);
            self.newest[place] = self.next_stamp;
            if for_good {
                self.host.repair(place, &unit);
                self.floor[place] = self.next_stamp;
                continue;
            }
            if !matches!(self.exports[disk].write_now(offset, &unit), Ok(true)) {
                return violation!("unit {place} can't be written over");
            }
            self.history.push(Write {
                place,
                count: 1,
                stamp: self.next_stamp,
            });
        }
        Ok(())
    }
}
