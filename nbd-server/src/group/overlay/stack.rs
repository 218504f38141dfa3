//! Several overlays of one disk read as one, the newest on top. Knows no files.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::clears::Clears;
use super::{Content, Overlay, REGION, Span, pieces};

/// Data and where on the disk it belongs.
pub type Piece<'a> = (u64, &'a [u8]);

/// A range inside of a region, and what the newest overlay that has it holds there.
#[derive(Debug, Clone, Copy)]
struct Held<'a> {
    start: u32,
    end: u32,
    content: Content<'a>,
}

impl Held<'_> {
    /// The part of it between `from` and `to`, which lie inside.
    fn part(&self, from: u32, to: u32) -> Self {
        let content = match self.content {
            Content::Data(data) => {
                let range = (from - self.start) as usize..(to - self.start) as usize;
                Content::Data(data.get(range).unwrap_or_default())
            }
            cleared => cleared,
        };
        Self {
            start: from,
            end: to,
            content,
        }
    }
}

/// Overlays that are no longer written to. It refers to what they hold: each costs as much as it holds, however many others there are, and so
/// does a look at them.
#[derive(Debug, Default)]
pub struct Stack<'a> {
    regions: HashMap<u64, Vec<Held<'a>>, RandomState>,
    clears: Clears,
}

impl<'a> Stack<'a> {
    /// Puts `layer` on top.
    pub fn push(&mut self, layer: &'a Overlay) {
        for (first, end, clear) in layer.clears.iter_from(0) {
            if end - first < self.regions.len() as u64 {
                (first..end).for_each(|number| drop(self.regions.remove(&number)));
            } else {
                self.regions
                    .retain(|number, _| !(first..end).contains(number));
            }
            self.clears.insert(first, end, clear);
        }
        for (number, region) in &layer.regions {
            let held = self.regions.entry(*number).or_default();
            let extents = region.extents().iter().map(|extent| Held {
                start: extent.start,
                end: extent.end(),
                content: layer.content(extent),
            });
            if held.is_empty() {
                held.extend(extents);
            } else {
                extents.for_each(|extent| put(held, extent));
            }
        }
    }

    /// Tells `found` what is held of a range, in order, all of it: content, or none where no overlay has anything. What is cleared, and what
    /// nobody has, comes in one piece however many regions that are.
    ///
    /// # Errors
    /// What `found` says.
    pub fn look<E>(
        &self,
        span: Span,
        mut found: impl FnMut(Span, Option<Content<'a>>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.regions.is_empty() && self.clears.is_empty() {
            return found(span, None);
        }
        let mut pending: Option<(Span, Option<Content<'a>>)> = None;
        let mut tell = |start: u64, end: u64, content: Option<Content<'a>>| -> Result<(), E> {
            if start >= end {
                return Ok(());
            }
            let is_data = matches!(content, Some(Content::Data(_)));
            match &mut pending {
                Some((span, same)) if !is_data && *same == content => span.end = end,
                last => {
                    if let Some((span, content)) = last.replace((Span { start, end }, content)) {
                        found(span, content)?;
                    }
                }
            }
            Ok(())
        };
        for piece in pieces(span.start, span.end - span.start) {
            let base = piece.region * REGION;
            let end = piece.start + piece.len;
            let below = self.clears.get(piece.region).map(Content::Cleared);
            let mut at = piece.start;
            for held in self.touching(piece.region, at, end) {
                let (from, to) = (held.start.max(at), held.end.min(end));
                tell(base + u64::from(at), base + u64::from(from), below)?;
                let content = held.part(from, to).content;
                tell(base + u64::from(from), base + u64::from(to), Some(content))?;
                at = to;
            }
            tell(base + u64::from(at), base + u64::from(end), below)?;
        }
        match pending {
            Some((span, content)) => found(span, content),
            None => Ok(()),
        }
    }

    /// What regions hold of `start..end` of one.
    fn touching(&self, region: u64, start: u32, end: u32) -> &[Held<'a>] {
        let held = self.regions.get(&region).map_or(&[][..], Vec::as_slice);
        let from = held.partition_point(|held| held.end <= start);
        let rest = held.get(from..).unwrap_or_default();
        let count = rest.iter().take_while(|held| held.start < end).count();
        rest.get(..count).unwrap_or_default()
    }

    /// All data that can be read, in the order of the disk.
    pub fn data(&self) -> Vec<Piece<'a>> {
        let mut order: Vec<(&u64, &Vec<Held<'a>>)> = self.regions.iter().collect();
        order.sort_unstable_by_key(|(number, _)| **number);
        let mut data = Vec::with_capacity(order.iter().map(|(_, held)| held.len()).sum());
        for (number, held) in order {
            let base = number * REGION;
            data.extend(held.iter().filter_map(|held| match held.content {
                Content::Data(bytes) => Some((base + u64::from(held.start), bytes)),
                Content::Cleared(_) => None,
            }));
        }
        data
    }
}

/// Puts `new` over what a region holds.
fn put<'a>(region: &mut Vec<Held<'a>>, new: Held<'a>) {
    let from = region.partition_point(|held| held.end <= new.start);
    let rest = region.get(from..).unwrap_or_default();
    let covered = rest.iter().take_while(|held| held.start < new.end).count();
    let touched = rest.get(..covered).unwrap_or_default();
    let head = touched.first().filter(|held| held.start < new.start);
    let head = head.map(|held| held.part(held.start, new.start));
    let tail = touched.last().filter(|held| held.end > new.end);
    let tail = tail.map(|held| held.part(new.end, held.end));
    match (region.get_mut(from), head, tail) {
        // A block that was written again.
        (Some(old), None, None) if covered == 1 => *old = new,
        (_, None, None) if covered == 0 => region.insert(from, new),
        _ => {
            let pieces = head.into_iter().chain([new]).chain(tail);
            region.splice(from..from + covered, pieces);
        }
    }
}

impl Overlay {
    /// The ranges of the disk that it changes, what is neighbours as one: what is cleared in whole regions first, then the rest, in order.
    ///
    /// For overlays that are no longer written to: the order is settled with the first call.
    pub fn spans(&self) -> impl Iterator<Item = Span> {
        let clears = self.clears.iter_from(0).map(|(first, end, _)| Span {
            start: first * REGION,
            end: end * REGION,
        });
        let mut extents = self.order().iter().flat_map(|number| {
            let base = number * REGION;
            let extents = self.regions.get(number).map_or(&[][..], |r| r.extents());
            extents.iter().map(move |extent| Span {
                start: base + u64::from(extent.start),
                end: base + u64::from(extent.end()),
            })
        });
        let mut next = extents.next();
        let rest = std::iter::from_fn(move || {
            let mut span = next.take()?;
            loop {
                next = extents.next();
                match next {
                    Some(more) if more.start == span.end => span.end = more.end,
                    _ => return Some(span),
                }
            }
        });
        clears.chain(rest)
    }
}
