//! Recovery: folds the records of a log, in order, into the state that holds. Sans-I/O: told what was found where, it
//! says what is committed, what is to be cut and what is damaged.
//!
//! A place without a valid record (a *hole*) is one of two things. If nothing after it speaks for it, it is the end of what
//! was being written when the power went: cut. If a later record does, it is damage. Three things speak for a hole:
//!
//! - a state record, data record or segment header with a higher sequence than the records seen account for: a state
//!   record was lost;
//! - a commit record whose chain does not match the data records seen: committed data was lost;
//! - an epoch that the state calls committed, but not applied, without a commit record.
//!
//! What is lost of applied epochs or of uncommitted data harms nobody.

use std::collections::BTreeMap;

use crate::{
    Damage, DamageKind, Epoch, LogState,
    format::{Chain, DataRecord, Position, SegmentHeader, StateKind, StateRecord},
};

/// Where a data record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordPlace {
    pub at: Position,
    pub header_len: u64,
    pub payload_len: u64,
}

/// Data of one epoch in the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct EpochData {
    pub chain: Chain,
    pub records: Vec<RecordPlace>,
    /// Its commit record, once there is one.
    pub commit: Option<Position>,
}

impl EpochData {
    /// Adds the next data record.
    pub fn add(&mut self, place: RecordPlace, header_sum: u64) {
        self.chain.add(header_sum, place.payload_len);
        self.records.push(place);
    }

    /// The oldest segment that this epoch needs.
    pub fn first_segment(&self) -> Option<u64> {
        self.records
            .iter()
            .map(|place| place.at.segment)
            .chain(self.commit.map(|at| at.segment))
            .min()
    }
}

/// What the log holds that still counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// Epochs with data but no commit record.
    pub pending: BTreeMap<Epoch, EpochData>,
    /// Committed epochs that are not applied.
    pub committed: BTreeMap<Epoch, EpochData>,
}

impl Index {
    /// Moves an epoch from pending to committed.
    pub fn commit(&mut self, epoch: Epoch, at: Position) {
        let mut data = self.pending.remove(&epoch).unwrap_or_default();
        data.commit = Some(at);
        self.committed.insert(epoch, data);
    }

    /// Forgets epochs that are applied.
    pub fn applied(&mut self, epoch: Epoch) {
        self.committed = self.committed.split_off(&epoch.next());
    }

    /// The oldest segment that is still needed.
    pub fn first_segment(&self) -> Option<u64> {
        self.pending
            .values()
            .chain(self.committed.values())
            .filter_map(EpochData::first_segment)
            .min()
    }
}

/// The fold over a log.
#[derive(Debug)]
pub(crate) struct Fold {
    base: Option<Position>,
    state: LogState,
    sequence: u64,
    index: Index,
    /// Committed epochs whose data does not match the chain, with the place to blame.
    incomplete: BTreeMap<Epoch, Position>,
    /// Where the last state record ends.
    state_end: Position,
    last_hole: Option<Position>,
    /// Where the last place ends that the disk could not read.
    unreadable_end: Option<Position>,
    clean: bool,
    damages: Vec<Damage>,
}

/// What a log comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub state: LogState,
    pub sequence: u64,
    pub index: Index,
    /// Everything from here on was never committed.
    pub state_end: Position,
    pub clean: bool,
    pub damages: Vec<Damage>,
}

impl Fold {
    pub fn new() -> Self {
        Self {
            base: None,
            state: LogState::new(),
            sequence: 0,
            index: Index::default(),
            incomplete: BTreeMap::new(),
            state_end: Position {
                segment: 0,
                offset: 0,
            },
            last_hole: None,
            unreadable_end: None,
            clean: false,
            damages: Vec::new(),
        }
    }

    fn damage(&mut self, at: Position, epoch: Option<Epoch>, what: DamageKind) {
        self.damages.push(Damage {
            segment: at.segment,
            offset: at.offset,
            epoch,
            what,
        });
    }

    /// A state record is missing before `at`.
    fn state_missing(&mut self, at: Position) {
        let at = self
            .last_hole
            .filter(|hole| *hole >= self.state_end)
            .unwrap_or(at);
        self.damage(
            at,
            Some(self.state.committed.next()),
            DamageKind::StateMissing,
        );
    }

    /// Damage that the reader found by itself.
    pub fn damaged(&mut self, at: Position, what: DamageKind) {
        self.damage(at, None, what);
    }

    /// The next segment begins.
    pub fn segment(&mut self, header: &SegmentHeader, records_start: u64) {
        let start = Position {
            segment: header.key.segment,
            offset: records_start,
        };
        if self.base.is_none() {
            self.base = Some(start);
            self.state = header.state.clone();
            self.sequence = header.sequence;
            self.state_end = start;
        } else if header.sequence > self.sequence {
            self.state_missing(Position {
                segment: header.key.segment,
                offset: 0,
            });
            self.state = header.state.clone();
            self.sequence = header.sequence;
            self.state_end = start;
        }
    }

    /// No valid record from `at` on, up to whatever comes next.
    pub fn hole(&mut self, at: Position) {
        self.last_hole = Some(at);
    }

    /// The disk could not read something that ends at `end`. No crash does that: where it could be a committed record, it must not be
    /// taken for an unfinished end.
    pub fn unreadable(&mut self, end: Position) {
        self.unreadable_end = self.unreadable_end.max(Some(end));
    }

    /// A data record whose end was not written, or is gone with the end of the file. It counts for nothing, but speaks of the state
    /// that was durable before it.
    pub fn cut_data(&mut self, at: Position, record: &DataRecord) {
        self.hear(at, record);
        self.hole(at);
    }

    /// What a data record says of the state: the change that it names was durable before it.
    fn hear(&mut self, at: Position, record: &DataRecord) {
        if record.sequence > self.sequence {
            self.state_missing(at);
            self.sequence = record.sequence;
        }
    }

    /// The next data record.
    pub fn data(&mut self, at: Position, record: &DataRecord) {
        self.hear(at, record);
        let current =
            record.sequence == self.sequence && record.generation == self.state.generation;
        if current && record.epoch > self.state.committed {
            let place = RecordPlace {
                at,
                header_len: record.header_len,
                payload_len: record.payload_len,
            };
            self.index
                .pending
                .entry(record.epoch)
                .or_default()
                .add(place, record.header_sum);
        }
    }

    /// The next state record, which ends at `end`.
    pub fn state(&mut self, at: Position, end: u64, record: &StateRecord) {
        if record.sequence <= self.sequence {
            return;
        }
        if record.sequence > self.sequence + 1 {
            self.state_missing(at);
        }
        match record.kind {
            StateKind::Commit => self.commit(at, record),
            StateKind::Generation | StateKind::Void => self.index.pending.clear(),
            StateKind::Applied => self.index.applied(record.state.applied),
            StateKind::Mode | StateKind::Opened | StateKind::CleanStop => {}
        }
        self.state = record.state.clone();
        self.sequence = record.sequence;
        self.state_end = Position {
            segment: at.segment,
            offset: end,
        };
        self.clean = record.kind == StateKind::CleanStop;
    }

    fn commit(&mut self, at: Position, record: &StateRecord) {
        let epoch = record.state.committed;
        self.index.commit(epoch, at);
        if self
            .index
            .committed
            .get(&epoch)
            .is_some_and(|data| data.chain != record.chain)
        {
            self.incomplete.insert(epoch, self.last_hole.unwrap_or(at));
        }
    }

    /// All has been read.
    pub fn finish(mut self) -> Outcome {
        let applied = self.state.applied;
        self.index.applied(applied);
        let incomplete = self.incomplete.split_off(&applied.next());
        for (epoch, at) in incomplete {
            self.damage(at, Some(epoch), DamageKind::DataMissing);
        }
        if self.unreadable_end.is_some_and(|end| end > self.state_end) {
            let at = self.last_hole.filter(|hole| *hole >= self.state_end);
            let at = at.unwrap_or(self.state_end);
            self.damage(
                at,
                Some(self.state.committed.next()),
                DamageKind::Unreadable,
            );
        }
        // With a state record already missing, what follows from it is not worth a report for each epoch.
        if !self
            .damages
            .iter()
            .any(|damage| damage.what == DamageKind::StateMissing)
        {
            let mut expected = applied.next();
            while expected <= self.state.committed && self.index.committed.contains_key(&expected) {
                expected = expected.next();
            }
            if expected <= self.state.committed {
                let at = self.base.unwrap_or(self.state_end);
                self.damage(at, Some(expected), DamageKind::StateMissing);
            }
        }
        Outcome {
            state: self.state,
            sequence: self.sequence,
            index: self.index,
            state_end: self.state_end,
            clean: self.clean,
            damages: self.damages,
        }
    }
}
