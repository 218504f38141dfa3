//! Several overlays of one disk read as one: of each byte only the newest data, in the order of the disk. Knows no files.

use super::{Content, Overlay, REGION, Span};

/// Data and where on the disk it belongs.
pub type Piece<'a> = (u64, &'a [u8]);

/// The data of `layers`, oldest first, that no newer layer hides, by offset.
///
/// For overlays that are no longer written to. It walks over the regions of all layers side by side, so that a layer costs as much as it
/// holds, however many others there are.
pub fn newest<'a>(layers: &[&'a Overlay]) -> Vec<Piece<'a>> {
    let mut data = Vec::new();
    let mut gaps = Vec::new();
    let mut rest: Vec<&'a [u64]> = layers.iter().map(|layer| layer.order()).collect();
    while let Some(region) = rest.iter().filter_map(|order| order.first()).min().copied() {
        let first = data.len();
        let start = region * REGION;
        gaps.clear();
        gaps.push(Span {
            start,
            end: start + REGION,
        });
        for (layer, order) in layers.iter().zip(&mut rest).rev() {
            layer.cover(&mut gaps, |span, content| {
                if let Content::Data(bytes) = content {
                    data.push((span.start, bytes));
                }
            });
            if let Some((_, later)) = order.split_first().filter(|(next, _)| **next == region) {
                *order = later;
            }
        }
        // What one layer has is in order; each further one goes into its gaps.
        let found: &mut [Piece<'a>] = data.get_mut(first..).unwrap_or_default();
        found.sort_unstable_by_key(|(offset, _)| *offset);
    }
    data
}
