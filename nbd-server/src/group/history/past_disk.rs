//! A disk as it was at one point in time. Knows nothing of connections.

use std::sync::Arc;

use epoch_log::history::{HistoryError, Layout, View};

use crate::export::{BlockExtent, IoError};
use crate::group::disk::Disk;
use crate::group::error::with_sources;
use crate::group::overlay::Span;

/// Looked at at once by one BLOCK_STATUS, in bytes.
const STEP: u64 = 256 << 20;

/// A disk of the past.
#[derive(Debug)]
pub struct PastDisk {
    view: View,
    number: u16,
    disk: Arc<Disk>,
}

impl PastDisk {
    /// Disk number `number` of the group, which it has, as `view` shows it.
    pub fn new(view: View, number: usize, disk: &Arc<Disk>) -> Self {
        Self {
            view,
            number: u16::try_from(number).unwrap_or(u16::MAX),
            disk: Arc::clone(disk),
        }
    }

    /// The point in time.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The disk as it is now.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Fills `buf` from `offset`. May block.
    ///
    /// # Errors
    /// [`IoError::Io`]: what is wrong has been reported.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.view
            .read(self.number, offset, buf, |at, part| {
                self.disk.image.read(at, part)
            })
            .map_err(|error| self.failed(&error))
    }

    /// Its extents, with the rules of [`Export::block_status`](crate::export::Export::block_status).
    ///
    /// # Errors
    /// As there.
    pub fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        let end = offset.saturating_add(len.min(STEP));
        let (layout, of_image) = self.settled_layout(offset, end, max_extents)?;
        let mut parts: Vec<(u64, BlockExtent)> = layout
            .saved
            .into_iter()
            .map(|(start, end, zero)| {
                let len = end - start;
                let extent = if zero {
                    BlockExtent::hole(len)
                } else {
                    BlockExtent::data(len)
                };
                (start, extent)
            })
            .collect();
        let mut complete = end;
        for ((start, end), found) in layout.of_image.into_iter().zip(of_image) {
            let mut at = start;
            for extent in found {
                parts.push((at, extent));
                at += extent.len;
            }
            if at < end {
                // There was more than was asked for: what lies behind would leave a hole in the answer.
                complete = complete.min(at);
            }
        }
        parts.sort_unstable_by_key(|(start, _)| *start);
        let known = parts
            .into_iter()
            .filter(|(start, extent)| start + extent.len <= complete);
        let mut extents: Vec<BlockExtent> = Vec::new();
        for (_, extent) in known {
            let full = extents.len() == max_extents;
            match extents.last_mut() {
                Some(last) if (last.hole, last.zero) == (extent.hole, extent.zero) => {
                    last.len += extent.len;
                }
                _ if full => break,
                _ => extents.push(extent),
            }
        }
        Ok(extents)
    }

    /// Where a range comes from, and what the image says of the parts that are its own. An image that changes while it is asked is asked
    /// once more: what it says is of a time at which all those parts were unchanged.
    fn settled_layout(
        &self,
        start: u64,
        end: u64,
        max: usize,
    ) -> Result<(Layout, Vec<Vec<BlockExtent>>), IoError> {
        let look = || {
            self.view
                .layout(self.number, start, end)
                .map_err(|error| self.failed(&error))
        };
        let mut layout = look()?;
        loop {
            let gaps = layout.of_image.iter();
            let of_image: Result<Vec<_>, _> = gaps
                .map(|(start, end)| {
                    let span = Span {
                        start: *start,
                        end: *end,
                    };
                    self.disk.image.extents(span, max)
                })
                .collect();
            let now = look()?;
            if now.of_image == layout.of_image {
                return Ok((layout, of_image?));
            }
            layout = now;
        }
    }

    fn failed(&self, error: &HistoryError) -> IoError {
        tracing::error!(
            disk = self.disk.name,
            epoch = self.view.point().epoch.0,
            "the past can't be read: {}",
            with_sources(error)
        );
        IoError::Io
    }
}
