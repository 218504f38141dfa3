//! The history of a group: what its images held at earlier epochs. The log of it is `epoch_log::history`; here it meets the group's disks:
//! what is about to be applied is saved first ([`GroupHistory::save`]), old states are exported (`export`), also to be written to (`clone`),
//! a thread keeps it in its bounds (`keeper`), and another moves what is old to a store of objects (`cooler`).

mod attach;
mod clone;
mod cold;
mod config;
mod contexts;
mod cooler;
mod export;
mod keeper;
mod past_disk;
mod point;
mod rewind;

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use epoch_log::Epoch;
use epoch_log::history::{Capture, History, HistoryError, Retention};

use super::disk::Disk;
use super::error::with_sources;
use super::image::Image;
use super::overlay::{Content, Span, Stack};
use super::shared::Cut;

pub use attach::names_a_point;
pub use clone::{CloneError, Clones, PIN_PREFIX};
pub use cold::{ColdConfig, ColdObjects, ColdSide};
pub use config::{HistoryConfig, Size, Span as TimeSpan, Thin};
pub use export::HistoricExport;
pub use keeper::Keeper;
pub use point::{Point, PointError, rfc3339};
pub use rewind::{RewindError, Rewound, carry_out};

/// Directory of the history, beside the segments of the log.
pub const DIRECTORY: &str = "history";
/// Ranges from this length on are looked at for holes before they are read, in bytes.
const LARGE: u64 = 1 << 20;
/// Most extents that are asked of an image at once.
const EXTENTS: usize = 1024;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The history of a group.
#[derive(Debug, Clone)]
pub struct GroupHistory {
    /// What was saved.
    pub past: Arc<History>,
    /// How much of it is kept.
    pub retention: Retention,
    /// Where its old parts go; none: nowhere.
    pub cold: Option<Arc<ColdSide>>,
}

impl GroupHistory {
    /// Saves what these epochs will change, durably. They may be applied then. What was saved before costs nothing. `stacks` has one for each
    /// disk, and is left with all that the epochs hold.
    ///
    /// # Errors
    /// In words; to be tried again.
    pub fn save<'a>(
        &self,
        disks: &[Arc<Disk>],
        batch: &'a [Arc<Cut>],
        stacks: &mut [Stack<'a>],
    ) -> Result<(), String> {
        loop {
            stacks.fill_with(Stack::default);
            let result = self.try_save(disks, batch, stacks);
            if result.as_ref().is_err_and(HistoryError::is_full) && self.make_room() {
                continue;
            }
            return result.map_err(|error| format!("{}; trying again", with_sources(&error)));
        }
    }

    fn try_save<'a>(
        &self,
        disks: &[Arc<Disk>],
        batch: &'a [Arc<Cut>],
        stacks: &mut [Stack<'a>],
    ) -> Result<(), HistoryError> {
        let mut capture = self.past.capture()?;
        let known = capture.last().epoch;
        for cut in batch {
            // Saved before, and applied in part perhaps.
            if cut.epoch > known {
                let changed = disks.iter().zip(&cut.overlays).zip(stacks.iter());
                for (number, ((disk, overlay), below)) in (0..).zip(changed) {
                    let place = Place {
                        disk: number,
                        image: &disk.image,
                    };
                    for span in overlay.spans() {
                        place.save_below(&mut capture, below, span)?;
                    }
                }
                capture.boundary(cut.epoch, cut.sealed_ms, true)?;
            }
            cut.stack(stacks);
        }
        capture.finish(batch.last().map_or(known, |cut| cut.epoch))
    }

    fn make_room(&self) -> bool {
        match self.past.trim_for_space() {
            Ok(true) => {
                tracing::warn!(
                    history = %self.past.path().display(),
                    "the disk is full: the oldest part of the history goes before its time{}",
                    keeper::although(self)
                );
                true
            }
            Ok(false) => false,
            Err(error) => {
                tracing::warn!("no room can be made: {}", with_sources(&error));
                false
            }
        }
    }
}

/// A disk in a capture.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Its number.
    pub disk: u16,
    /// Its image.
    pub image: &'a Image,
}

impl Place<'_> {
    /// Saves what a range holds below an epoch that changes it: in the epochs before it that wait with it, or in the image.
    fn save_below(
        &self,
        capture: &mut Capture<'_>,
        below: &Stack<'_>,
        span: Span,
    ) -> Result<(), HistoryError> {
        below.look(span, |span, content| match content {
            None => self.save(capture, span),
            Some(Content::Cleared(_)) => capture.save_zeros(self.disk, span.start, span.end),
            Some(Content::Data(data)) => {
                capture.save(self.disk, span.start, span.end, |at, buffer| {
                    let from = usize::try_from(at - span.start).unwrap_or(usize::MAX);
                    let part = data.get(from..).and_then(|rest| rest.get(..buffer.len()));
                    buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                    Ok(())
                })
            }
        })
    }

    /// Saves what the image holds in a range.
    pub fn save(&self, capture: &mut Capture<'_>, span: Span) -> Result<(), HistoryError> {
        let mut at = span.start;
        if span.end - span.start >= LARGE {
            while at < span.end {
                let rest = Span { start: at, ..span };
                let extents = self
                    .image
                    .extents(rest, EXTENTS)
                    .map_err(HistoryError::Old)?;
                if extents.is_empty() {
                    break;
                }
                for extent in extents {
                    let end = (at + extent.len).min(span.end);
                    if extent.zero {
                        capture.save_zeros(self.disk, at, end)?;
                    } else {
                        self.save_data(capture, at, end)?;
                    }
                    at = end;
                }
            }
        }
        self.save_data(capture, at, span.end)
    }

    fn save_data(
        &self,
        capture: &mut Capture<'_>,
        start: u64,
        end: u64,
    ) -> Result<(), HistoryError> {
        if start >= end {
            return Ok(());
        }
        capture.save(self.disk, start, end, |at, buffer| {
            self.image.read(at, buffer)
        })
    }
}

/// Saves what one epoch of a log will change, and applies nothing: for a group that is being opened.
///
/// # Errors
/// [`HistoryError`].
pub fn save_epoch(
    history: &GroupHistory,
    images: &[Image],
    log: &epoch_log::EpochLog,
    epoch: Epoch,
) -> Result<(), HistoryError> {
    let mut capture = history.past.capture()?;
    if epoch <= capture.last().epoch {
        return Ok(());
    }
    log.replay_epoch(epoch, |extent| {
        let Some(image) = images.get(usize::from(extent.disk)) else {
            return Ok(());
        };
        let place = Place {
            disk: extent.disk,
            image,
        };
        let span = Span {
            start: extent.offset,
            end: extent.offset + extent.len,
        };
        place.save(&mut capture, span)
    })?;
    capture.boundary(epoch, now_ms(), true)?;
    capture.finish(epoch)
}
