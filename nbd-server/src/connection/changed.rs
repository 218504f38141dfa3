//! What has changed on a disk since a point in time, put together of what its layers hold and what its past says of the image. It knows no
//! socket, and neither layers nor the past from inside.

use crate::export::{Export, IoError, Since};

/// Looked at at once, in bytes of the disk: a client that asks for all of a large one gets its answer in pieces.
const STEP: u64 = 256 << 20;

/// Stretches from `offset` on, in order and without a gap, each with its length and whether it has changed since then: at least one. They
/// may end before `offset + len`; neighbours may be alike. `max`: most extents to look for in the layers.
///
/// A disk that is written meanwhile loses nothing: what is written goes from the layers to the image, never back; before the image gets
/// it, the past knows of it; and only when the image has it, the layer goes. So the layers are looked at first. What they don't have any more by then
/// the past has already, and what comes later was written after the question.
///
/// # Errors
/// When the export or its past can't say.
pub(super) fn since(
    export: &dyn Export,
    since: &dyn Since,
    offset: u64,
    len: u64,
    max: usize,
) -> Result<Vec<(u64, bool)>, IoError> {
    let shows = export.shows();
    let mut changed = Vec::new();
    let mut end = offset.saturating_add(len.min(STEP));
    // A disk of the past has no layers.
    if shows.is_none() {
        let mut at = offset;
        for extent in export.held_status(offset, end - offset, max)? {
            let next = at.saturating_add(extent.len).min(end);
            if extent.held && at < next {
                changed.push((at, next));
            }
            at = next;
        }
        end = at;
    }
    if end <= offset {
        // An answer without a stretch would read as "nothing has changed".
        return Err(IoError::Io);
    }
    changed.extend(since.changed(shows, offset, end - offset)?);
    changed.sort_unstable();
    Ok(stretches(&changed, offset, end))
}

/// All of a range, cut where it begins or ends to be in one of `parts`, which are in order of their beginnings and may overlap.
fn stretches(parts: &[(u64, u64)], start: u64, end: u64) -> Vec<(u64, bool)> {
    let mut stretches = Vec::new();
    let mut at = start;
    for (from, to) in parts {
        let (from, to) = ((*from).max(at), (*to).min(end));
        if from >= to {
            continue;
        }
        if at < from {
            stretches.push((from - at, false));
        }
        stretches.push((to - from, true));
        at = to;
    }
    if at < end {
        stretches.push((end - at, false));
    }
    stretches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parts_may_overlap_touch_and_reach_beyond() {
        let parts = [(0, 12), (11, 13), (13, 15), (20, 20), (30, 90), (40, 50)];
        let expected = [(5, true), (15, false), (10, true)];
        let joined = |stretches: Vec<(u64, bool)>| {
            let mut joined: Vec<(u64, bool)> = Vec::new();
            for (len, changed) in stretches {
                match joined.last_mut() {
                    Some(last) if last.1 == changed => last.0 += len,
                    _ => joined.push((len, changed)),
                }
            }
            joined
        };
        assert_eq!(joined(stretches(&parts, 10, 40)), expected);
        assert_eq!(stretches(&[], 3, 9), [(6, false)]);
        assert_eq!(stretches(&[(0, 100)], 3, 9), [(6, true)]);
    }

    proptest! {
        #[test]
        fn each_byte_is_said_to_be_what_it_is(
            parts in prop::collection::vec((0u64..60, 0u64..20), 0..12), start in 0u64..40, len in 1u64..40,
        ) {
            let mut parts: Vec<(u64, u64)> = parts.iter().map(|(at, len)| (*at, at + len)).collect();
            parts.sort_unstable();
            let mut at = start;
            for (len, changed) in stretches(&parts, start, start + len) {
                prop_assert!(len > 0);
                for byte in at..at + len {
                    let expected = parts.iter().any(|(from, to)| (*from..*to).contains(&byte));
                    prop_assert_eq!(changed, expected, "byte {}", byte);
                }
                at += len;
            }
            prop_assert_eq!(at, start + len);
        }
    }
}
