//! Attaching to the past of a group: finding the point in time that a client names, once the images have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use epoch_log::Epoch;
use epoch_log::history::{HistoryError, View};

use super::export::{self, HistoricExport};
use super::{GroupHistory, Point};
use crate::export::{Cutter, ExportInfo};
use crate::group::disk::{Disk, Rights};
use crate::group::error::with_sources;
use crate::group::shared::{Entry, Order};
use crate::group::{Group, Refusal};

/// How long a client waits for an epoch that is committed and on its way to the images.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Whether what follows the `@` of an export names a point in time: no id of an instance has a `=`.
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
        disk: &Disk,
        point: &str,
    ) -> Result<ExportInfo, Refusal> {
        let view = self.view(&parse(point)?)?;
        Ok(export::info(disk, self.name(), &view))
    }

    pub(in crate::group) fn attach_past(
        &self,
        number: usize,
        point: &str,
        cutter: Cutter,
    ) -> Result<HistoricExport, Refusal> {
        let view = self.view(&parse(point)?)?;
        let disk = self.shared.disks.get(number);
        let disk = disk.ok_or_else(|| Refusal::Past("there is no such disk".to_owned()))?;
        let entry = Entry {
            instance: Some(point.to_owned()),
            rights: Arc::new(Rights::parked()),
            cutter,
            past: true,
        };
        let entry = self.shared.enter(&mut self.shared.core(), entry);
        Ok(HistoricExport::new(&self.shared, entry, view, number, disk))
    }
}

fn parse(point: &str) -> Result<Point, Refusal> {
    point
        .parse()
        .map_err(|error: super::PointError| Refusal::Past(error.to_string()))
}
