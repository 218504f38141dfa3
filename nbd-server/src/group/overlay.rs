//! The epoch buffer of one disk for one epoch: what the guest wrote in it, newest write on top. Knows byte ranges and
//! nothing else: no epochs, no locks, no files.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::{Budget, Charge};

/// What one extent costs beyond its data, in bytes: its place in the map.
const EXTENT_BYTES: u64 = 96;

/// What a range of an overlay holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Guest data; its length is the extent's.
    Data(Bytes),
    /// Reads as zeros, and shall keep its space.
    Zero,
    /// Reads as zeros; the guest no longer needs it.
    Trim,
}

/// A part of a disk: the range of bytes `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

#[derive(Debug)]
struct Piece {
    len: u64,
    content: Content,
}

/// Extents that don't overlap, by offset.
#[derive(Debug)]
pub struct Overlay {
    extents: BTreeMap<u64, Piece>,
    data_bytes: u64,
    /// Pays for the map; the data pays for itself.
    charge: Charge,
    budget: Arc<Budget>,
}

impl Overlay {
    /// An empty overlay that charges what it holds to `budget`.
    pub fn new(budget: &Arc<Budget>) -> Self {
        Self {
            extents: BTreeMap::new(),
            data_bytes: 0,
            charge: budget.charge(0),
            budget: Arc::clone(budget),
        }
    }

    /// Nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Number of extents.
    pub fn extents(&self) -> usize {
        self.extents.len()
    }

    /// Bytes of guest data that can still be read, which is what goes to the log.
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Puts `data` at `offset`, over what is there. Keeps the buffer, copies nothing.
    pub fn write(&mut self, offset: u64, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let len = data.len() as u64;
        let data = self.budget.hold(data);
        self.insert(
            offset,
            Piece {
                len,
                content: Content::Data(data),
            },
        );
    }

    /// Makes the range read as zeros; `trim` if the guest no longer needs its space.
    pub fn clear(&mut self, offset: u64, len: u64, trim: bool) {
        if len == 0 {
            return;
        }
        let content = if trim { Content::Trim } else { Content::Zero };
        self.insert(offset, Piece { len, content });
    }

    fn insert(&mut self, offset: u64, piece: Piece) {
        self.make_room(offset, offset.saturating_add(piece.len));
        if let Content::Data(_) = piece.content {
            self.data_bytes += piece.len;
        }
        self.extents.insert(offset, piece);
        self.charge
            .resize(EXTENT_BYTES.saturating_mul(self.extents.len() as u64));
    }

    /// Removes everything in `start..end`; extents that reach beyond it keep what is outside.
    fn make_room(&mut self, start: u64, end: u64) {
        let mut from = self.first_touching(start);
        while let Some((&at, _)) = self.extents.range(from..end).next() {
            let Some(piece) = self.extents.remove(&at) else {
                return;
            };
            let piece_end = at + piece.len;
            if let Content::Data(_) = piece.content {
                self.data_bytes -= piece.len;
            }
            if at < start {
                self.put_back(at, piece.part(0, start - at));
                from = start;
            }
            if piece_end > end {
                self.put_back(end, piece.part(end - at, piece.len));
                return;
            }
        }
    }

    fn put_back(&mut self, at: u64, piece: Piece) {
        if let Content::Data(_) = piece.content {
            self.data_bytes += piece.len;
        }
        self.extents.insert(at, piece);
    }

    /// Offset of the first extent that reaches beyond `start`, or `start`.
    fn first_touching(&self, start: u64) -> u64 {
        match self.extents.range(..start).next_back() {
            Some((&at, piece)) if at + piece.len > start => at,
            _ => start,
        }
    }

    /// Fills the `gaps` of `buf`, which begins at byte `base` of the disk, as far as this overlay covers them, and leaves
    /// in `gaps` what it doesn't. Gaps are in order and inside `buf`.
    pub fn read(&self, base: u64, buf: &mut [u8], gaps: &mut Vec<Span>) {
        if self.extents.is_empty() {
            return;
        }
        let mut left = Vec::new();
        for gap in gaps.iter() {
            let mut position = gap.start;
            for (&at, piece) in self.extents.range(self.first_touching(gap.start)..gap.end) {
                let from = at.max(gap.start);
                let to = (at + piece.len).min(gap.end);
                if from > position {
                    left.push(Span {
                        start: position,
                        end: from,
                    });
                }
                piece.copy_to(from - at, part_of(buf, from - base, to - base));
                position = to;
            }
            if position < gap.end {
                left.push(Span {
                    start: position,
                    end: gap.end,
                });
            }
        }
        *gaps = left;
    }

    /// The extents from `offset` on, in order: offset, length, content.
    pub fn iter_from(&self, offset: u64) -> impl Iterator<Item = (u64, u64, &Content)> {
        self.extents
            .range((Bound::Included(offset), Bound::Unbounded))
            .map(|(&at, piece)| (at, piece.len, &piece.content))
    }
}

impl Piece {
    /// The part `from..to` of this piece.
    fn part(&self, from: u64, to: u64) -> Self {
        let content = match &self.content {
            Content::Data(data) => Content::Data(data.slice(index(from)..index(to))),
            Content::Zero => Content::Zero,
            Content::Trim => Content::Trim,
        };
        Self {
            len: to - from,
            content,
        }
    }

    /// Fills `buf` with what this piece holds from `from` on.
    fn copy_to(&self, from: u64, buf: &mut [u8]) {
        match &self.content {
            Content::Data(data) => {
                let from = index(from);
                if let Some(source) = data.get(from..from + buf.len()) {
                    buf.copy_from_slice(source);
                }
            }
            Content::Zero | Content::Trim => buf.fill(0),
        }
    }
}

/// The part `from..to` of `buf`; empty if it isn't inside, which the callers' arithmetic rules out.
pub fn part_of(buf: &mut [u8], from: u64, to: u64) -> &mut [u8] {
    let range = index(from)..index(to);
    debug_assert!(range.end <= buf.len(), "a gap lies outside of its buffer");
    buf.get_mut(range).unwrap_or_default()
}

/// A distance inside a buffer that is in memory, so it fits.
#[allow(clippy::cast_possible_truncation)]
fn index(distance: u64) -> usize {
    distance as usize
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::cast_possible_truncation
    )]
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 200;

    #[derive(Debug, Clone)]
    enum Op {
        Write(u64, Vec<u8>),
        Clear(u64, u64, bool),
    }

    fn op() -> impl Strategy<Value = Op> {
        let range = (0..SIZE, 1..60_u64).prop_map(|(at, len)| (at, len.min(SIZE - at)));
        prop_oneof![
            4 => (range.clone(), any::<u8>()).prop_map(|((at, len), first)| {
                Op::Write(at, (0..len).map(|i| first.wrapping_add(i as u8)).collect())
            }),
            1 => (range, any::<bool>()).prop_map(|((at, len), trim)| Op::Clear(at, len, trim)),
        ]
    }

    fn read(overlays: &[&Overlay], below: &[u8], at: u64, len: u64) -> Vec<u8> {
        let mut buf = vec![0xEE; len as usize];
        let mut gaps = vec![Span {
            start: at,
            end: at + len,
        }];
        for overlay in overlays {
            overlay.read(at, &mut buf, &mut gaps);
        }
        for gap in gaps {
            part_of(&mut buf, gap.start - at, gap.end - at)
                .copy_from_slice(&below[gap.start as usize..gap.end as usize]);
        }
        buf
    }

    fn apply(op: &Op, overlay: &mut Overlay, model: &mut [u8]) {
        match op {
            Op::Write(at, data) => {
                overlay.write(*at, data.clone().into());
                model[*at as usize..*at as usize + data.len()].copy_from_slice(data);
            }
            Op::Clear(at, len, trim) => {
                overlay.clear(*at, *len, *trim);
                model[*at as usize..(*at + *len) as usize].fill(0);
            }
        }
    }

    proptest! {
        #[test]
        fn layers_read_like_a_plain_disk(
            older in proptest::collection::vec(op(), 0..30),
            newer in proptest::collection::vec(op(), 0..30),
            reads in proptest::collection::vec((0..SIZE, 1..SIZE), 1..10),
        ) {
            let budget = Budget::new(u64::MAX, Arc::default());
            let image: Vec<u8> = (0..SIZE).map(|i| 255 - i as u8).collect();
            let mut model = image.clone();
            let (mut low, mut high) = (Overlay::new(&budget), Overlay::new(&budget));
            for op in &older {
                apply(op, &mut low, &mut model);
            }
            for op in &newer {
                apply(op, &mut high, &mut model);
            }
            for (at, len) in reads {
                let len = len.min(SIZE - at);
                let got = read(&[&high, &low], &image, at, len);
                prop_assert_eq!(&got[..], &model[at as usize..(at + len) as usize]);
            }
            for overlay in [&low, &high] {
                let mut end = 0;
                let mut data = 0;
                for (at, len, content) in overlay.iter_from(0) {
                    prop_assert!(at >= end && len > 0, "extents overlap");
                    end = at + len;
                    if let Content::Data(bytes) = content {
                        prop_assert_eq!(bytes.len() as u64, len);
                        data += len;
                    }
                }
                prop_assert_eq!(data, overlay.data_bytes());
            }
            drop((low, high));
            prop_assert_eq!(budget.held(), 0);
        }
    }

    #[test]
    fn overwriting_gives_the_memory_back() {
        let budget = Budget::new(u64::MAX, Arc::default());
        let mut overlay = Overlay::new(&budget);
        overlay.write(0, vec![1; 4096].into());
        let once = budget.held();
        for i in 0..100 {
            overlay.write(0, vec![i; 4096].into());
        }
        assert_eq!(budget.held(), once);
        overlay.write(4095, vec![9; 1].into());
        assert!(
            budget.held() > once,
            "the old buffer is still held by its first 4095 bytes"
        );
        assert_eq!(overlay.data_bytes(), 4096);
    }
}
