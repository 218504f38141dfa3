//! What a disk of a group holds where: its layers over the holes and the data of its image, as BLOCK_STATUS asks for it.

use super::disk::{Disk, Rights};
use super::overlay::{Clear, Content, Span};
use crate::export::{BlockExtent, HeldExtent, IoError};

/// A disk with layers is looked at in steps of this many bytes, so that a client that asks for all of it holds up no writer for long.
const STEP: u64 = 256 << 20;

/// One stretch of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    span: Span,
    hole: bool,
    zero: bool,
}

/// What is allocated and what reads as zeros; rules as for [`crate::export::Export::block_status`].
pub fn allocation(
    disk: &Disk,
    rights: &Rights,
    range: Span,
    max: usize,
) -> Result<Vec<BlockExtent>, IoError> {
    let stretches = look(disk, rights, range, max)?;
    let same = |a: &Stretch, b: &Stretch| (a.hole, a.zero) == (b.hole, b.zero);
    let extents = joined(&stretches, same).map(|stretch| BlockExtent {
        len: stretch.span.end - stretch.span.start,
        hole: stretch.hole,
        zero: stretch.zero,
    });
    Ok(extents.take(max).collect())
}

/// What is in a layer and not yet in the image; the same rules.
pub fn held(
    disk: &Disk,
    rights: &Rights,
    range: Span,
    max: usize,
) -> Result<Vec<HeldExtent>, IoError> {
    let bare = disk.is_bare();
    let step = first_step(range);
    let mut parts = Vec::new();
    let gaps = disk.cover(rights, step, |span, _| parts.push((span, true)))?;
    // Without layers one answer is enough for all of the range.
    let gaps = if bare && parts.is_empty() {
        vec![range]
    } else {
        gaps
    };
    parts.extend(gaps.into_iter().map(|span| (span, false)));
    parts.sort_unstable_by_key(|(span, _)| span.start);
    let extents = parts.chunk_by(|a, b| a.1 == b.1).map(|alike| HeldExtent {
        len: alike.iter().map(|(span, _)| span.end - span.start).sum(),
        held: alike.iter().any(|(_, held)| *held),
    });
    Ok(extents.take(max).collect())
}

/// What of a range is looked at at once, if there are layers.
fn first_step(range: Span) -> Span {
    Span {
        end: range.end.min(range.start.saturating_add(STEP)),
        ..range
    }
}

/// All stretches from the beginning of `range` on, in order, without a gap; not always to its end.
fn look(disk: &Disk, rights: &Rights, range: Span, max: usize) -> Result<Vec<Stretch>, IoError> {
    let bare = disk.is_bare();
    let step = first_step(range);
    let mut stretches = Vec::new();
    // Also where there is nothing: it checks the rights.
    let gaps = disk.cover(rights, step, |span, content| {
        let (hole, zero) = match content {
            Content::Data(_) => (false, false),
            Content::Cleared(Clear::Zero) => (false, true),
            Content::Cleared(Clear::Hole | Clear::Trim) => (true, true),
        };
        stretches.push(Stretch { span, hole, zero });
    })?;
    let mut complete = u64::MAX;
    // Without layers the image alone answers, for all of the range.
    for gap in if bare && stretches.is_empty() {
        vec![range]
    } else {
        gaps
    } {
        let mut at = gap.start;
        for extent in disk.image.extents(gap, max)? {
            let span = Span {
                start: at,
                end: at + extent.len,
            };
            at = span.end;
            stretches.push(Stretch {
                span,
                hole: extent.hole,
                zero: extent.zero,
            });
        }
        if at < gap.end {
            // There was more than was asked for: what lies behind would leave a hole in the answer.
            complete = complete.min(at);
        }
    }
    stretches.sort_unstable_by_key(|stretch| stretch.span.start);
    stretches.retain(|stretch| stretch.span.end <= complete);
    Ok(stretches)
}

/// Neighbours that are the `same` as one.
fn joined<'a>(
    stretches: &'a [Stretch],
    same: impl Fn(&Stretch, &Stretch) -> bool + 'a,
) -> impl Iterator<Item = Stretch> + 'a {
    stretches
        .chunk_by(same)
        .filter_map(|alike| match (alike.first(), alike.last()) {
            (Some(first), Some(last)) => Some(Stretch {
                span: Span {
                    start: first.span.start,
                    end: last.span.end,
                },
                ..*first
            }),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::FileExt;

    use epoch_log::Generation;

    use super::super::barriers::{FlushRule, Gate};
    use super::super::budget::Budget;
    use super::super::disk::{Change, Held};
    use super::super::image::Image;
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn layers_lie_over_the_holes_of_the_image() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * MIB).unwrap();
        file.as_file().write_all_at(&[1; 1 << 20], 2 * MIB).unwrap();
        let budget = Budget::endless();
        let image = Image::open(file.path(), false).unwrap();
        let disk = Disk::new("a".into(), image, false, &budget, Held::nothing(&budget));
        let rights = Rights::of(Generation(0), true);
        let all = Span {
            start: 0,
            end: 4 * MIB,
        };
        let status = |max| -> Vec<(u64, bool, bool)> {
            let extents = allocation(&disk, &rights, all, max).unwrap();
            extents.iter().map(|e| (e.len, e.hole, e.zero)).collect()
        };
        let image_alone = [
            (2 * MIB, true, true),
            (MIB, false, false),
            (MIB, true, true),
        ];
        assert_eq!(status(9), image_alone);

        disk.lock().set_gate(Gate::Held(FlushRule::Free));
        let write = |at, change: Change<'_>| {
            disk.write(&rights, at, &change, false).unwrap();
        };
        write(MIB, Change::Data(&[2; 4096]));
        let clear = |len, clear| Change::Clear { len, clear };
        write(2 * MIB, clear(MIB / 2, Clear::Hole));
        write(3 * MIB, clear(MIB, Clear::Zero));
        let expected = [
            (MIB, true, true),
            (4096, false, false),
            (MIB - 4096 + MIB / 2, true, true),
            (MIB / 2, false, false),
            (MIB, false, true),
        ];
        assert_eq!(status(9), expected);
        assert_eq!(status(1), expected[..1]);
        let held: Vec<(u64, bool)> = held(&disk, &rights, all, 9)
            .unwrap()
            .iter()
            .map(|e| (e.len, e.held))
            .collect();
        let expected = [
            (MIB, false),
            (4096, true),
            (MIB - 4096, false),
            (MIB / 2, true),
            (MIB / 2, false),
            (MIB, true),
        ];
        assert_eq!(held, expected);
    }
}
