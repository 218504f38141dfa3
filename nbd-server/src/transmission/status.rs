//! What a reply to BLOCK_STATUS may say ("NBD_REPLY_TYPE_BLOCK_STATUS"): whatever an export has answered is made to fit the request.

use crate::protocol::MAX_STATUS_EXTENTS;

/// One stretch with the status flags of a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes, more than 0.
    pub len: u64,
    /// In the terms of the context.
    pub flags: u32,
}

/// The extents to send for a request of `len` bytes: together no more than these, neighbours with the same flags as one, at most
/// [`MAX_STATUS_EXTENTS`] or, if `one`, a single one. There is always at least one, so that a client gets on: without any
/// knowledge its flags are 0, which is always true.
pub fn fit(
    extents: impl IntoIterator<Item = StatusExtent>,
    len: u64,
    one: bool,
) -> Vec<StatusExtent> {
    let max = if one { 1 } else { MAX_STATUS_EXTENTS };
    let mut left = len;
    let mut fitting: Vec<StatusExtent> = Vec::new();
    for extent in extents {
        let taken = extent.len.min(left);
        if taken == 0 {
            continue;
        }
        if let Some(last) = fitting.last_mut()
            && last.flags == extent.flags
        {
            last.len += taken;
        } else if fitting.len() == max {
            break;
        } else {
            fitting.push(StatusExtent {
                len: taken,
                flags: extent.flags,
            });
        }
        left -= taken;
    }
    if fitting.is_empty() {
        fitting.push(StatusExtent { len, flags: 0 });
    }
    fitting
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn extent(len: u64, flags: u32) -> StatusExtent {
        StatusExtent { len, flags }
    }

    #[test]
    fn neighbours_become_one_and_the_last_is_cut() {
        let extents = [extent(5, 1), extent(5, 1), extent(0, 9), extent(9, 3)];
        assert_eq!(fit(extents, 12, false), [extent(10, 1), extent(2, 3)]);
        assert_eq!(fit(extents, 12, true), [extent(10, 1)]);
        assert_eq!(fit(extents, 7, true), [extent(7, 1)]);
        assert_eq!(fit([], 7, false), [extent(7, 0)]);
    }

    proptest! {
        #[test]
        fn what_is_sent_is_within_the_request_and_true(
            lens in prop::collection::vec((0u64..100, 0u32..3), 0..60), len in 1u64..500, one: bool,
        ) {
            let sent = fit(lens.iter().map(|&(len, flags)| extent(len, flags)), len, one);
            prop_assert!(!sent.is_empty() && (!one || sent.len() == 1));
            prop_assert!(sent.iter().all(|extent| extent.len > 0));
            prop_assert!(sent.iter().map(|extent| extent.len).sum::<u64>() <= len);
            prop_assert!(sent.windows(2).all(|pair| pair[0].flags != pair[1].flags));
            let bytes = |extents: &[StatusExtent]| -> Vec<u32> {
                extents.iter().flat_map(|extent| vec![extent.flags; usize::try_from(extent.len).unwrap()]).collect()
            };
            let given: Vec<StatusExtent> = lens.iter().map(|&(len, flags)| extent(len, flags)).collect();
            if given.iter().any(|extent| extent.len > 0) {
                prop_assert!(bytes(&given).starts_with(&bytes(&sent)));
            }
        }
    }
}
