//! Attaching to the past of a group: finding the point in time that a client names, once the images have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use epoch_log::Epoch;
use epoch_log::history::{HistoryError, View};

use super::export::{self, HistoricExport, PastEntry};
use super::past_disk::PastDisk;
use super::{GroupHistory, Point, clone};
use crate::export::{Cutter, Export, ExportInfo};
use crate::group::error::with_sources;
use crate::group::shared::Order;
use crate::group::{Group, Refusal};

/// How long a client waits for an epoch that is committed and on its way to the images.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Whether what follows the `@` of an export names a point in time, or a clone of one: no id of an instance has a `=`.
pub fn names_a_point(instance: &str) -> bool {
    instance.contains('=')
}

impl Group {
    /// The group's past, if it is kept.
    pub fn history(&self) -> Option<&GroupHistory> {
        self.shared.history.as_ref()
    }

    /// The disks at a point in time. One that is committed and not in the images yet is waited for, so this may block.
    ///
    /// # Errors
    /// [`Refusal::Past`] if that point can't be had.
    pub fn view(&self, point: &Point) -> Result<View, Refusal> {
        let history = self.history().ok_or_else(|| {
            Refusal::Past(format!(
                "group '{}' keeps no history; add [group.history] to its configuration",
                self.name()
            ))
        })?;
        let past = &history.past;
        let view = match point {
            Point::Epoch(epoch) => {
                self.wait_for(*epoch);
                past.view(*epoch)
            }
            Point::Time(ms) => past.view_at(*ms),
            Point::Pin(name) => past.view_pin(name),
        };
        view.map_err(|error: HistoryError| Refusal::Past(with_sources(&error)))
    }

    /// Waits until the images, and so the history, have what is committed now.
    pub fn settle(&self) {
        let committed = self.shared.core().barriers.committed();
        self.wait_for(committed);
    }

    /// Waits until the images have an epoch that is committed.
    fn wait_for(&self, epoch: Epoch) {
        let begun = Instant::now();
        loop {
            let (applied, committed) = {
                let barriers = &self.shared.core().barriers;
                (barriers.applied(), barriers.committed())
            };
            if epoch <= applied || epoch > committed || begun.elapsed() > PATIENCE {
                return;
            }
            // If the applier is gone, so is the gateway soon.
            let _ = self.shared.apply.send(Order::Hurry);
            std::thread::sleep(LOOK);
        }
    }

    pub(in crate::group) fn describe_past(
        &self,
        number: usize,
        point: &str,
    ) -> Result<ExportInfo, Refusal> {
        if let Some(name) = clone::named(point) {
            return self.describe_clone(number, name);
        }
        let view = self.view(&parse(point)?)?;
        let disk = self.shared.disks.get(number).ok_or_else(no_disk)?;
        Ok(export::info(disk, self.name(), &view))
    }

    pub(in crate::group) fn attach_past(
        &self,
        number: usize,
        point: &str,
        cutter: Cutter,
    ) -> Result<Arc<dyn Export>, Refusal> {
        if let Some(name) = clone::named(point) {
            return self.attach_clone(number, name, cutter);
        }
        let view = self.view(&parse(point)?)?;
        let disk = self.shared.disks.get(number).ok_or_else(no_disk)?;
        let entry = PastEntry::new(&self.shared, point, cutter);
        let past = PastDisk::new(view, number, disk);
        Ok(Arc::new(HistoricExport::new(entry, self.name(), past)))
    }
}

fn no_disk() -> Refusal {
    Refusal::Past("there is no such disk".to_owned())
}

fn parse(point: &str) -> Result<Point, Refusal> {
    point
        .parse()
        .map_err(|error: super::PointError| Refusal::Past(error.to_string()))
}
