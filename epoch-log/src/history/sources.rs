//! What has to be looked at to read a history between two boundaries, and looking at it. Knows no images.

use std::sync::Arc;

use super::HistoryError;
use super::first::FirstMap;
use super::format::{Boundary, Entry, Step};
use super::live::{Active, Live};
use super::run::{ClosedRun, RunFile};

/// Where the content of a range lies.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its run.
    pub file: Arc<RunFile>,
    /// What holds it.
    pub entry: Entry,
    /// First byte on the disk.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

/// A part of a run, in memory.
#[derive(Debug)]
struct Part {
    file: Arc<RunFile>,
    entries: Vec<Entry>,
    map: FirstMap,
}

impl Part {
    fn new(file: &Arc<RunFile>) -> Self {
        Self {
            file: Arc::clone(file),
            entries: Vec::new(),
            map: FirstMap::default(),
        }
    }

    fn absorb(&mut self, entries: &[Entry]) {
        for entry in entries {
            let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
            self.map
                .fill(entry.disk, entry.start, entry.end(), number, |_, _| {});
            self.entries.push(*entry);
        }
    }
}

#[derive(Debug)]
enum Source {
    Whole(Arc<ClosedRun>),
    Part(Part),
}

/// All sources between two boundaries, oldest first.
#[derive(Debug)]
pub struct Sources {
    version: u64,
    sources: Vec<Source>,
    /// Number of the run that grows, and how many of its entries are taken in, if the sources go on with it.
    growing: Option<(u64, usize)>,
}

impl Sources {
    /// Everything from `from` up to `to`, or, without one, up to the images.
    pub fn new(live: &Live, from: Boundary, to: Option<Boundary>) -> Result<Self, HistoryError> {
        let end = to.map_or(u64::MAX, |to| to.seq);
        let mut sources = Vec::new();
        for run in &live.runs {
            if run.to().seq <= from.seq || run.from.seq >= end {
                continue;
            }
            if run.from.seq >= from.seq && run.to().seq <= end {
                sources.push(Source::Whole(Arc::clone(run)));
                continue;
            }
            let (first, last) = range(&run.steps()?, run.from, from.seq, end, run.entries_count());
            let mut part = Part::new(&run.file);
            part.absorb(&run.entries(first, last)?);
            sources.push(Source::Part(part));
        }
        let active = &live.active;
        let mut growing = None;
        if active.from.seq < end {
            let all = active.entries.len() as u64;
            let (first, last) = range(&active.steps, active.from, from.seq, end, all);
            let mut part = Part::new(&active.file);
            part.absorb(slice(active, first, last));
            sources.push(Source::Part(part));
            if to.is_none() {
                growing = Some((active.file.number, active.entries.len()));
            }
        }
        Ok(Self {
            version: live.version,
            sources,
            growing,
        })
    }

    /// Takes in what has been saved since. None: runs have been closed or merged, so the sources have to be made anew.
    pub fn follow(mut self, live: &Live) -> Option<Self> {
        if self.version != live.version {
            return None;
        }
        if let Some((number, taken)) = &mut self.growing {
            let active = &live.active;
            let Some(Source::Part(part)) = self.sources.last_mut() else {
                return None;
            };
            if active.file.number != *number {
                return None;
            }
            part.absorb(active.entries.get(*taken..).unwrap_or_default());
            *taken = active.entries.len();
        }
        Some(self)
    }

    /// Finds what the oldest source that has it says of each part of `gaps`, and leaves in them what none has.
    pub fn find(
        &self,
        disk: u16,
        gaps: &mut Vec<(u64, u64)>,
        found: &mut Vec<Found>,
    ) -> Result<(), HistoryError> {
        for source in &self.sources {
            if gaps.is_empty() {
                break;
            }
            let mut left = Vec::new();
            for (start, end) in gaps.drain(..) {
                let mut at = start;
                for piece in source.find(disk, start, end)? {
                    if at < piece.start {
                        left.push((at, piece.start));
                    }
                    at = piece.end;
                    found.push(piece);
                }
                if at < end {
                    left.push((at, end));
                }
            }
            *gaps = left;
        }
        Ok(())
    }
}

impl Source {
    fn find(&self, disk: u16, start: u64, end: u64) -> Result<Vec<Found>, HistoryError> {
        match self {
            Self::Whole(run) => {
                let mut found = Vec::new();
                for piece in run.find(disk, start, end)? {
                    found.push(Found {
                        file: Arc::clone(&run.file),
                        entry: run.entry_of(&piece)?,
                        start: piece.start,
                        end: piece.start + u64::from(piece.len),
                    });
                }
                Ok(found)
            }
            Self::Part(part) => {
                let mut found = Vec::new();
                part.map.visit(disk, start, end, |piece| {
                    if let Some(entry) = part.entries.get(piece.entry as usize) {
                        found.push(Found {
                            file: Arc::clone(&part.file),
                            entry: *entry,
                            start: piece.start,
                            end: piece.start + u64::from(piece.len),
                        });
                    }
                });
                Ok(found)
            }
        }
    }
}

/// Which entries of a run that begins at `begin` lie between two boundaries.
fn range(steps: &[Step], begin: Boundary, from: u64, to: u64, all: u64) -> (u64, u64) {
    let end_of = |seq: u64| {
        if seq <= begin.seq {
            return 0;
        }
        let place = steps.partition_point(|step| step.to.seq < seq);
        steps
            .get(place)
            .map_or(all, |step| u64::from(step.entries_end))
    };
    (end_of(from), end_of(to))
}

fn slice(active: &Active, first: u64, last: u64) -> &[Entry] {
    let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    active
        .entries
        .get(index(first)..index(last))
        .unwrap_or_default()
}
