//! What was written to a server below and is not yet known to be on its disk. A server that restarts has lost it, so it is kept here to be
//! sent again, and to be read. Bytes and ranges only: no I/O.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

use super::remote::Life;

/// What a range holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Data(Bytes),
    Zeros(u64),
}

impl Content {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros(len) => *len,
        }
    }

    /// Bytes of memory.
    fn weight(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Zeros(_) => 0,
        }
    }

    fn part(&self, from: u64, to: u64) -> Self {
        match self {
            Self::Data(data) => {
                let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(data.len());
                Self::Data(data.slice(at(from)..at(to)))
            }
            Self::Zeros(_) => Self::Zeros(to - from),
        }
    }
}

/// How a write was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Not at all.
    Unanswered,
    /// It is in the memory of this life of the server.
    Received(Life),
    /// It is on the disk.
    Durable,
}

#[derive(Debug, Clone)]
struct Piece {
    content: Content,
    /// Number of the write.
    write: u64,
    /// Flushes that had begun when it was written.
    round: u64,
    standing: Standing,
}

/// A stretch to be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Again {
    pub offset: u64,
    pub content: Content,
    pub write: u64,
}

/// The newest of what was written to each range. No two pieces overlap.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pieces: BTreeMap<u64, Piece>,
    weight: usize,
}

impl Kept {
    /// Bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        self.weight
    }

    /// Where the last piece ends.
    pub fn end(&self) -> u64 {
        let last = self.pieces.last_key_value();
        last.map_or(0, |(at, piece)| at + piece.content.len())
    }

    /// Keeps a write, in place of what was written there before.
    pub fn insert(&mut self, offset: u64, content: Content, write: u64, round: u64) {
        self.cut(offset..offset + content.len());
        self.put(
            offset,
            Piece {
                content,
                write,
                round,
                standing: Standing::Unanswered,
            },
        );
    }

    fn put(&mut self, offset: u64, piece: Piece) {
        self.weight += piece.content.weight();
        self.pieces.insert(offset, piece);
    }

    fn take(&mut self, offset: u64) -> Option<Piece> {
        let piece = self.pieces.remove(&offset)?;
        self.weight -= piece.content.weight();
        Some(piece)
    }

    fn overlapping(&self, range: &Range<u64>) -> Vec<u64> {
        let before = self.pieces.range(..range.start).next_back();
        let before = before.filter(|(at, piece)| **at + piece.content.len() > range.start);
        let within = self.pieces.range(range.clone());
        before
            .into_iter()
            .chain(within)
            .map(|(at, _)| *at)
            .collect()
    }

    /// Forgets a range.
    pub fn cut(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        for at in self.overlapping(&range) {
            let Some(piece) = self.take(at) else { continue };
            let end = at + piece.content.len();
            let mut keep = |from: u64, to: u64| {
                if from < to {
                    let content = piece.content.part(from - at, to - at);
                    self.put(from, Piece { content, ..piece });
                }
            };
            keep(at, range.start.min(end));
            keep(range.end.max(at), end);
        }
    }

    /// Forgets what is left of a write.
    pub fn forget(&mut self, range: Range<u64>, write: u64) {
        for at in self.overlapping(&range) {
            if self
                .pieces
                .get(&at)
                .is_some_and(|piece| piece.write == write)
            {
                self.take(at);
            }
        }
    }

    /// A write was answered.
    pub fn mark(&mut self, range: Range<u64>, write: u64, standing: Standing) {
        for at in self.overlapping(&range) {
            if let Some(piece) = self
                .pieces
                .get_mut(&at)
                .filter(|piece| piece.write == write)
            {
                piece.standing = standing;
            }
        }
    }

    /// Forgets what is on the disk, after a flush that began after `round` and was answered in this life of the server.
    pub fn flushed(&mut self, round: u64, life: Life) {
        let safe = |piece: &Piece| {
            piece.standing == Standing::Durable
                || piece.round <= round && piece.standing == Standing::Received(life)
        };
        self.drop_if(safe);
    }

    /// Forgets what is on the disk by itself.
    pub fn drop_durable(&mut self) {
        self.drop_if(|piece| piece.standing == Standing::Durable);
    }

    fn drop_if(&mut self, gone: impl Fn(&Piece) -> bool) {
        let weight = &mut self.weight;
        self.pieces.retain(|_, piece| {
            let gone = gone(piece);
            if gone {
                *weight -= piece.content.weight();
            }
            !gone
        });
    }

    /// What of the writes up to `round` has no answer. After [`Kept::expire`] that is also what a dead server has taken with it.
    pub fn unanswered(&self, round: u64) -> Vec<Again> {
        let due = |piece: &Piece| piece.round <= round && piece.standing == Standing::Unanswered;
        let pieces = self.pieces.iter().filter(|(_, piece)| due(piece));
        pieces
            .map(|(offset, piece)| Again {
                offset: *offset,
                content: piece.content.clone(),
                write: piece.write,
            })
            .collect()
    }

    /// Whether a stretch is still to be sent again.
    pub fn waits(&self, again: &Again) -> bool {
        self.pieces.get(&again.offset).is_some_and(|piece| {
            piece.write == again.write
                && piece.content.len() == again.content.len()
                && piece.standing == Standing::Unanswered
        })
    }

    /// Whether anything of the writes up to `round` is kept.
    pub fn has(&self, round: u64) -> bool {
        self.pieces.values().any(|piece| piece.round <= round)
    }

    /// What other lives of the server have received is gone. Returns how many bytes that are.
    pub fn expire(&mut self, life: Life) -> u64 {
        let mut lost = 0;
        for piece in self.pieces.values_mut() {
            if matches!(piece.standing, Standing::Received(other) if other != life) {
                piece.standing = Standing::Unanswered;
                lost += piece.content.len();
            }
        }
        lost
    }

    /// What is kept of a range, cut to it, in order.
    pub fn find(&self, range: &Range<u64>) -> Vec<(u64, Content)> {
        self.overlapping(range)
            .into_iter()
            .filter_map(|at| {
                let piece = self.pieces.get(&at)?;
                let from = range.start.max(at);
                let to = range.end.min(at + piece.content.len());
                Some((from, piece.content.part(from - at, to - at)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 256;

    const fn life(connection: u64) -> Life {
        Life {
            connection,
            verifier: 0,
        }
    }

    fn bytes(len: u64, byte: u8) -> Content {
        Content::Data(Bytes::from(vec![byte; len as usize]))
    }

    #[test]
    fn a_flush_frees_only_what_it_was_meant_for() {
        let mut kept = Kept::default();
        kept.insert(0, bytes(10, 1), 1, 0);
        kept.insert(5, bytes(10, 2), 2, 1);
        kept.mark(0..10, 1, Standing::Received(life(7)));
        kept.mark(5..15, 2, Standing::Received(life(7)));
        // The second began after the flush.
        kept.flushed(0, life(7));
        assert_eq!(kept.find(&(0..20)), [(5, bytes(10, 2))]);
        // Another life of the server: it has lost it.
        kept.flushed(1, life(8));
        assert_eq!(kept.expire(life(8)), 10);
        let again = Again {
            offset: 5,
            content: bytes(10, 2),
            write: 2,
        };
        assert!(kept.waits(&again));
        assert_eq!(kept.unanswered(1), [again]);
        kept.mark(5..15, 2, Standing::Received(life(8)));
        kept.flushed(1, life(8));
        assert!(!kept.has(u64::MAX));
        assert_eq!(kept.weight(), 0);
    }

    #[test]
    fn the_answer_of_an_old_write_says_nothing_of_a_newer_one() {
        let mut kept = Kept::default();
        kept.insert(0, bytes(10, 1), 1, 0);
        kept.insert(2, bytes(3, 2), 2, 0);
        kept.mark(0..10, 1, Standing::Durable);
        kept.flushed(0, life(1));
        assert_eq!(kept.find(&(0..10)), [(2, bytes(3, 2))]);
        kept.forget(0..10, 1);
        assert!(kept.has(0));
        kept.forget(0..10, 2);
        assert!(!kept.has(u64::MAX));
    }

    proptest! {
        #[test]
        fn the_newest_of_each_byte_is_found(
            writes in proptest::collection::vec((0..SIZE, 1..80_u64, 0..4_u8), 1..40),
        ) {
            let mut kept = Kept::default();
            let mut model: Vec<Option<u8>> = vec![None; SIZE as usize];
            for (number, (at, len, kind)) in writes.into_iter().enumerate() {
                let len = len.min(SIZE - at);
                let byte = number as u8;
                let span = at as usize..(at + len) as usize;
                match kind {
                    0 => {
                        kept.cut(at..at + len);
                        model[span].fill(None);
                    }
                    1 => {
                        kept.insert(at, Content::Zeros(len), number as u64, 0);
                        model[span].fill(Some(0));
                    }
                    _ => {
                        kept.insert(at, bytes(len, byte), number as u64, 0);
                        model[span].fill(Some(byte));
                    }
                }
                let mut found: Vec<Option<u8>> = vec![None; SIZE as usize];
                let mut weight = 0;
                for (offset, content) in kept.find(&(0..SIZE)) {
                    let span = offset as usize..(offset + content.len()) as usize;
                    match content {
                        Content::Zeros(_) => found[span].fill(Some(0)),
                        Content::Data(data) => {
                            weight += data.len();
                            for (place, byte) in span.zip(data) {
                                found[place] = Some(byte);
                            }
                        }
                    }
                }
                prop_assert_eq!(&found, &model);
                prop_assert_eq!(weight, kept.weight());
            }
        }
    }
}
