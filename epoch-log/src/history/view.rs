//! The disks as they were at one point in time, and what has changed since. Reads what was saved and, for what never changed, the images,
//! which go on changing meanwhile.
//!
//! Why that is exact: whoever changes an image saves what it held first, and what is saved is visible before the image changes. So a reader
//! looks at what is saved, reads the image for the rest, and looks once more: what was not saved by then had not been changed either
//! when it was read.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::live::{Kept, Point};
use super::run::Away;
use super::sources::{Found, Sources};
use super::{History, HistoryError};

/// A disk is looked through in steps of so many bytes.
const STEP: u64 = 256 << 20;

/// One point in time. It is kept as long as the view is.
#[derive(Debug)]
pub struct View {
    history: Arc<History>,
    from: Point,
    /// Where it ends, for [`Changes`]; none: with the images.
    to: Option<Point>,
    sources: Mutex<Option<Sources>>,
}

impl View {
    /// A view of the disks at `from`. With `to` it can only tell what changed up to there.
    pub(super) fn new(
        history: Arc<History>,
        from: Point,
        to: Option<Point>,
    ) -> Result<Self, HistoryError> {
        history.hold(from.boundary.seq);
        let view = Self {
            history,
            from,
            to,
            sources: Mutex::new(None),
        };
        view.with_sources(|_| Ok(()))?;
        Ok(view)
    }

    /// The point in time.
    #[must_use]
    pub fn point(&self) -> Kept {
        self.from.kept()
    }

    fn with_sources<T>(
        &self,
        look: impl FnOnce(&Sources) -> Result<T, HistoryError>,
    ) -> Result<T, HistoryError> {
        let mut slot = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.history.live();
        let sources = match slot.take().and_then(|sources| sources.follow(&live)) {
            Some(sources) => sources,
            None => Sources::new(&live, self.from.boundary, self.to.map(|to| to.boundary))?,
        };
        drop(live);
        look(slot.insert(sources))
    }

    fn find(
        &self,
        disk: u16,
        gaps: &mut Vec<(u64, u64)>,
        found: &mut Vec<Found>,
    ) -> Result<(), HistoryError> {
        self.with_sources(|sources| sources.find(disk, gaps, found))
    }

    /// Fills `buffer` with what the disk held from `offset` on. `image` fills a buffer with what its image holds now.
    ///
    /// # Errors
    /// [`HistoryError::Damaged`], [`HistoryError::Io`]; [`HistoryError::Old`] if `image` fails.
    pub fn read(
        &self,
        disk: u16,
        offset: u64,
        buffer: &mut [u8],
        mut image: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> Result<(), HistoryError> {
        let end = offset + buffer.len() as u64;
        let mut gaps = vec![(offset, end)];
        let mut found = Vec::new();
        self.find(disk, &mut gaps, &mut found)?;
        for (start, end) in &gaps {
            image(*start, part(buffer, offset, *start, *end)).map_err(HistoryError::Old)?;
        }
        if !gaps.is_empty() {
            self.find(disk, &mut gaps, &mut found)?;
        }
        let mut scratch = Vec::new();
        for found in &found {
            let target = part(buffer, offset, found.start, found.end);
            found
                .file
                .read_entry(&found.entry, found.start, target, &mut scratch)?;
        }
        Ok(())
    }

    /// Which parts of a range changed after this point, as far as it is in the images or was saved for them: in order, neighbours joined.
    ///
    /// # Errors
    /// [`HistoryError::Damaged`], [`HistoryError::Io`].
    pub fn changed(
        &self,
        disk: u16,
        start: u64,
        end: u64,
    ) -> Result<Vec<(u64, u64)>, HistoryError> {
        let mut found = Vec::new();
        self.find(disk, &mut vec![(start, end)], &mut found)?;
        found.sort_unstable_by_key(|found| found.start);
        let mut changed: Vec<(u64, u64)> = Vec::new();
        for found in found {
            match changed.last_mut() {
                Some((_, to)) if *to == found.start => *to = found.end,
                _ => changed.push((found.start, found.end)),
            }
        }
        Ok(changed)
    }

    /// Makes sure that the cold store answers, and has all that is needed to read what changed after this point on disks of these sizes. Reads
    /// nothing of it.
    ///
    /// # Errors
    /// [`HistoryError::Cold`]; [`HistoryError::Damaged`], [`HistoryError::Io`].
    pub fn check_cold(&self, sizes: &[u64]) -> Result<(), HistoryError> {
        let mut seen = BTreeSet::new();
        for (disk, size) in (0_u16..).zip(sizes) {
            let mut at = 0;
            while at < *size {
                let end = at.saturating_add(STEP).min(*size);
                let mut found = Vec::new();
                self.find(disk, &mut vec![(at, end)], &mut found)?;
                for found in found.iter().filter(|found| !found.entry.is_zero()) {
                    let Some(Away { objects, cold }) = &found.file.away else {
                        continue;
                    };
                    let entry = &found.entry;
                    let last = entry.place.saturating_add(u64::from(entry.len) - 1);
                    for part in objects.part_at(entry.place).0..=objects.part_at(last).0 {
                        if seen.insert((objects.number, part)) {
                            cold.check(objects, part)?;
                        }
                    }
                }
                at = end;
            }
        }
        Ok(())
    }

    /// Which parts of a range are known to have held zeros: in order, neighbours joined.
    ///
    /// # Errors
    /// [`HistoryError::Damaged`], [`HistoryError::Io`].
    pub fn layout(&self, disk: u16, start: u64, end: u64) -> Result<Layout, HistoryError> {
        let mut gaps = vec![(start, end)];
        let mut found = Vec::new();
        self.find(disk, &mut gaps, &mut found)?;
        let saved = found
            .iter()
            .map(|found| (found.start, found.end, found.entry.is_zero()))
            .collect();
        Ok(Layout {
            saved,
            of_image: gaps,
        })
    }
}

/// What changed between two points in time.
#[derive(Debug)]
pub struct Changes(View);

impl Changes {
    pub(super) fn new(view: View) -> Self {
        Self(view)
    }

    /// Where they begin.
    #[must_use]
    pub fn from(&self) -> Kept {
        self.0.point()
    }

    /// As [`View::changed`], up to the later point.
    ///
    /// # Errors
    /// As there.
    pub fn changed(
        &self,
        disk: u16,
        start: u64,
        end: u64,
    ) -> Result<Vec<(u64, u64)>, HistoryError> {
        self.0.changed(disk, start, end)
    }
}

/// Where a range of a view comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Parts that were saved, in no order: begin, end, and whether they held zeros.
    pub saved: Vec<(u64, u64, bool)>,
    /// Parts that are as the image is, in order.
    pub of_image: Vec<(u64, u64)>,
}

impl Drop for View {
    fn drop(&mut self) {
        self.history.release(self.from.boundary.seq);
    }
}

/// The part of `buffer`, which begins at byte `base` of a disk, for a range of the disk.
fn part(buffer: &mut [u8], base: u64, start: u64, end: u64) -> &mut [u8] {
    let index = |at: u64| usize::try_from(at - base).unwrap_or(usize::MAX);
    buffer.get_mut(index(start)..index(end)).unwrap_or_default()
}
