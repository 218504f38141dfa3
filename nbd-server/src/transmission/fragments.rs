//! How the answer to a READ is cut into data and holes ("NBD_REPLY_TYPE_OFFSET_HOLE"). Lengths only; nothing is read here.

use crate::export::BlockExtent;

/// Reads below this are answered with their data: to ask for holes would cost more than it saves.
pub const MIN_SPARSE_READ: u32 = 64 << 10;
/// A shorter hole is sent as data: it costs the client less than a chunk does.
const MIN_HOLE: u64 = 4096;
/// Chunks of one answer; what is behind the last is sent as data.
pub const MAX_FRAGMENTS: usize = 128;

/// One chunk of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// First byte.
    pub offset: u64,
    /// Bytes, more than 0.
    pub len: u32,
    /// It reads as zeros and is not sent.
    pub hole: bool,
}

/// Cuts `len` bytes from `offset` as `extents` say, which start at `offset`. The fragments cover the range exactly, and data and
/// holes take turns.
pub fn fragments(offset: u64, len: u32, extents: &[BlockExtent]) -> Vec<Fragment> {
    let mut fragments: Vec<Fragment> = Vec::new();
    let (mut at, mut left) = (offset, len);
    let rest = BlockExtent::data(u64::MAX);
    for extent in extents.iter().chain([&rest]) {
        // It is no longer than what is left, which fits.
        let taken = u32::try_from(extent.len.min(left.into())).unwrap_or(left);
        if taken == 0 {
            continue;
        }
        let full = fragments.len() + 1 >= MAX_FRAGMENTS;
        let hole = extent.zero && u64::from(taken) >= MIN_HOLE && !full;
        match fragments.last_mut() {
            Some(last) if last.hole == hole => last.len += taken,
            _ => fragments.push(Fragment {
                offset: at,
                len: taken,
                hole,
            }),
        }
        at += u64::from(taken);
        left -= taken;
    }
    fragments
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hole_stands_between_data_and_a_small_one_is_data() {
        let extents = [
            BlockExtent::data(10_000),
            BlockExtent::hole(4095),
            BlockExtent::hole(100_000),
        ];
        let fragment = |offset, len, hole| Fragment { offset, len, hole };
        assert_eq!(
            fragments(7, 70_000, &extents),
            [fragment(7, 14_095, false), fragment(14_102, 55_905, true)]
        );
        assert_eq!(fragments(7, 70_000, &[]), [fragment(7, 70_000, false)]);
    }

    proptest! {
        #[test]
        fn the_range_is_covered_once_and_no_data_is_called_a_hole(
            lens in prop::collection::vec((0u64..20_000, any::<bool>()), 0..400), offset in 0u64..1 << 40, len in 1u32..4_000_000,
        ) {
            let extents: Vec<BlockExtent> = lens.iter()
                .map(|&(len, hole)| if hole { BlockExtent::hole(len) } else { BlockExtent::data(len) })
                .collect();
            let cut = fragments(offset, len, &extents);
            prop_assert!(cut.len() <= MAX_FRAGMENTS);
            let mut at = offset;
            for fragment in &cut {
                prop_assert!(fragment.offset == at && fragment.len > 0);
                at += u64::from(fragment.len);
            }
            prop_assert_eq!(at, offset + u64::from(len));
            let mut start = offset;
            for extent in &extents {
                let end = start + extent.len;
                // An extent of no bytes overlaps nothing, wherever it lies.
                if !extent.zero && extent.len > 0 {
                    let overlap = |f: &Fragment| f.hole && f.offset < end && f.offset + u64::from(f.len) > start;
                    prop_assert!(!cut.iter().any(overlap));
                }
                start = end;
            }
        }
    }
}
