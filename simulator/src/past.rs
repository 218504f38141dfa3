//! The past of a group that keeps history, held against what its epochs were.

use std::collections::BTreeMap;

use epoch_log::history::{Kept, Retention};
use nbd_server::Epoch;
use nbd_server::group::history::now_ms;

use crate::blocks::{CLEARED, Stamp, UNIT, position, shown, stamps};
use crate::gateway::{Gateway, StorageHost};
use crate::{Violation, violation};

/// What the disks held at each committed epoch.
#[derive(Debug, Default)]
pub struct Past {
    tables: BTreeMap<Epoch, Vec<Stamp>>,
}

/// What is older than a minute, at the time that the keeper is told: all of it.
const LATER_MS: u64 = 3_600_000;

impl Past {
    /// An epoch is committed.
    pub fn committed(&mut self, epoch: Epoch, table: &[Stamp]) {
        self.tables.insert(epoch, table.to_vec());
    }

    /// Every epoch that is kept is what it was: those that `choose` takes are read as a whole. How many that were. Kept is every epoch that
    /// the images have; where some may go, the newest that is saved.
    ///
    /// # Errors
    /// What is not so.
    pub fn check(
        &self,
        host: &StorageHost,
        gateway: &Gateway,
        mut choose: impl FnMut() -> bool,
    ) -> Result<u64, Violation> {
        let Some(history) = gateway.stepped.group().history() else {
            return Ok(0);
        };
        let mut whole = 0;
        let mut kept: Vec<Kept> = Vec::new();
        if let Err(error) = history
            .past
            .visit_points(Epoch(0), |point| kept.push(point))
        {
            return violation!("history: its points can't be read: {error:?}");
        }
        let newest = history.past.newest().epoch;
        let applied = gateway.stepped.standing().applied;
        // A disk that is full takes the oldest, whatever is wanted.
        let all = host.retention == Retention::unlimited() && host.disk.figures().1 == 0;
        for (&epoch, table) in self.tables.range(..=applied) {
            let Some(point) = kept
                .iter()
                .find(|point| (point.epoch..=point.until).contains(&epoch))
            else {
                if all || epoch >= newest {
                    return violation!("history: epoch {epoch} is not kept");
                }
                continue;
            };
            if !choose() {
                continue;
            }
            let view = match history.past.view(epoch) {
                Ok(view) if view.point() == *point => view,
                other => return violation!("history: epoch {epoch} is not to be had: {other:?}"),
            };
            whole += 1;
            let mut unit = vec![0; UNIT];
            for (place, stamp) in table.iter().copied().enumerate() {
                let (disk, offset) = position(place);
                let number = u16::try_from(disk).unwrap_or(u16::MAX);
                let read = view.read(number, offset, &mut unit, |at, part| {
                    host.image_bytes(disk, at, part);
                    Ok(())
                });
                let found = stamps(place, &unit);
                if read.is_err() || found != [Some(shown(stamp)); 2] {
                    return violation!(
                        "history: at epoch {epoch} unit {place} was {:x}, and reads {found:?}, {read:?}",
                        stamp & !CLEARED
                    );
                }
            }
        }
        Ok(whole)
    }
}

/// A turn of the thread that keeps the history in its bounds. Whether it did anything.
pub fn keep(host: &StorageHost, gateway: &Gateway) -> bool {
    let history = gateway.stepped.group().history();
    // What fails is due again.
    history.is_some_and(|history| {
        let done = history.past.maintain(now_ms() + LATER_MS, &host.retention);
        done.is_ok_and(|done| !done.is_nothing())
    })
}
