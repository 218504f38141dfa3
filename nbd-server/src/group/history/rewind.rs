//! Setting a group back to a point of its past: a new epoch whose content is that of the old one. Nothing is lost by it: what is undone
//! stays in the history. The group is closed meanwhile.
//!
//! ```text
//!   mark, durable ─▶ generation raised ─▶ (save a piece, durable ─▶ put the old content into the image) … ─▶ boundary
//!     ─▶ commit record of the new epoch ─▶ mark removed
//! ```
//!
//! Between the first and the last of these the images are no epoch. Whoever opens the group then goes on from the mark: to save and
//! to put back again changes nothing that is done already.

use epoch_log::history::{HistoryError, View};
use epoch_log::{Content, Epoch, EpochLog, Extent, LogError, Mode};
use serde::{Deserialize, Serialize};

use super::{GroupHistory, Place, now_ms};
use crate::group::image::Image;
use crate::group::overlay::Span;

/// Saved and put back at once, in bytes.
const PIECE: u64 = 16 << 20;
/// What changed is asked for in steps of so many bytes of the disk.
const STEP: u64 = 256 << 20;
/// Stretches of zeros from this length on become holes, in bytes.
const HOLE: usize = 64 << 10;

/// What a rewind came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewound {
    /// The epoch whose content the disks have now.
    pub to: Epoch,
    /// The number that this content has from now on.
    pub epoch: Epoch,
    /// Bytes of the disks that were put back.
    pub bytes: u64,
}

/// Why a rewind stopped half-way. It goes on when the group is opened.
#[derive(Debug, thiserror::Error)]
pub enum RewindError {
    /// The history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An image.
    #[error("an image can't be set back")]
    Image(#[from] std::io::Error),
}

/// Sets the images back to epoch `to`, which the history has been [marked](epoch_log::history::History::begin_rewind) for. All that is
/// committed is applied. Afterwards nobody owns the group, and no standby holds its memory.
///
/// # Errors
/// [`RewindError`].
pub fn carry_out(
    history: &GroupHistory,
    images: &[Image],
    log: &mut EpochLog,
    to: Epoch,
) -> Result<Rewound, RewindError> {
    let past = &history.past;
    let committed = log.state().committed;
    let next = committed.next();
    let mut bytes = 0;
    if past.newest().epoch <= committed {
        log.raise_generation(None, "rewound to an earlier epoch")?;
        log.set_mode(Mode::Async { holder: None })?;
        let view = past.view(to)?;
        for (number, image) in images.iter().enumerate() {
            let place = Place {
                disk: u16::try_from(number).unwrap_or(u16::MAX),
                image,
            };
            bytes += set_back(history, &view, place, committed)?;
            image.sync()?;
        }
        let mut capture = past.capture()?;
        capture.boundary(next, now_ms(), true)?;
        capture.finish(next)?;
    }
    let generation = log.state().generation;
    log.commit(generation, next, None)?;
    log.mark_applied(next)?;
    past.applied(next);
    past.end_rewind()?;
    Ok(Rewound {
        to,
        epoch: next,
        bytes,
    })
}

fn set_back(
    history: &GroupHistory,
    view: &View,
    place: Place<'_>,
    committed: Epoch,
) -> Result<u64, RewindError> {
    let mut bytes = 0;
    let mut at = 0;
    while at < place.image.size() {
        let end = place.image.size().min(at + STEP);
        for (start, end) in view.changed(place.disk, at, end)? {
            let mut start = start;
            while start < end {
                let stop = end.min(start + PIECE);
                let span = Span { start, end: stop };
                let mut capture = history.past.capture()?;
                place.save(&mut capture, span)?;
                capture.finish(committed)?;
                put_back(view, place, span)?;
                bytes += stop - start;
                start = stop;
            }
        }
        at = end;
    }
    Ok(bytes)
}

fn put_back(view: &View, place: Place<'_>, span: Span) -> Result<(), RewindError> {
    let len = usize::try_from(span.end - span.start).unwrap_or(0);
    let mut buffer = vec![0; len];
    view.read(place.disk, span.start, &mut buffer, |at, part| {
        place.image.read(at, part)
    })?;
    let mut at = span.start;
    for chunk in buffer.chunks(HOLE) {
        let zero = chunk.len() == HOLE && chunk.iter().all(|byte| *byte == 0);
        place.image.apply(&Extent {
            disk: place.disk,
            offset: at,
            len: chunk.len() as u64,
            content: if zero {
                Content::Hole
            } else {
                Content::Data(chunk)
            },
        })?;
        at += chunk.len() as u64;
    }
    Ok(())
}
