//! Whole logs to be altered, made by the log itself, with all that they were on the way.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use epoch_log::storage::Storage;
use epoch_log::{
    Content, DiskIdentity, Epoch, EpochLog, Extent, ExtentKind, LogError, LogState, Mode,
};
use xxhash_rust::xxh3::xxh3_64;

use super::memory::Memory;
use super::records::{Item, Placed, SECTOR, items};
use super::{Files, content, open, said};

/// Disk, offset, length, kind, checksum of the data.
type Change = (u16, u64, u64, ExtentKind, u64);

/// What a log holds that counts.
#[derive(Clone, PartialEq, Eq)]
pub struct Durable {
    pub state: LogState,
    /// What each epoch changes that is committed and not applied.
    epochs: BTreeMap<Epoch, Vec<Change>>,
}

impl std::fmt::Debug for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (generation, committed, applied) = said(&self.state);
        let epochs: Vec<_> = self
            .epochs
            .iter()
            .map(|(epoch, extents)| (epoch.0, extents.len()))
            .collect();
        write!(
            f,
            "generation {generation}, committed {committed}, applied {applied}, epochs {epochs:?}"
        )
    }
}

/// A whole log.
pub struct Sample {
    pub files: Files,
    /// What each of its files holds.
    pub items: BTreeMap<String, Vec<Placed>>,
    /// What was true after each change of the state, by the number of the change.
    history: BTreeMap<u64, Durable>,
}

/// What an alteration has left.
pub struct Left {
    /// The newest change of the state that something whole speaks of.
    pub newest: u64,
    /// At least one copy of all that counts is there, and no file is missing or in the way.
    pub whole: bool,
}

impl Sample {
    /// What the unaltered log holds.
    pub fn now(&self) -> &Durable {
        self.history.values().next_back().unwrap()
    }

    /// Whether the log was `found` after some change, the change `newest` or a later one.
    pub fn was_true_at(&self, found: &Durable, newest: u64) -> bool {
        self.history.range(newest..).any(|(_, then)| then == found)
    }

    /// What is left of it in `files`.
    pub fn left(&self, files: &Files) -> Left {
        let mut newest = 0;
        let mut whole = files.keys().eq(self.files.keys());
        for (name, items) in &self.items {
            let (before, now) = (&self.files[name], files.get(name));
            let untouched = now.is_some_and(|now| Arc::ptr_eq(now, before));
            let same = |(from, to): (usize, usize)| {
                untouched || now.is_some_and(|now| now.get(from..to) == before.get(from..to))
            };
            for Placed { item, sequence } in items {
                let any = item.copies().into_iter().any(same);
                if any {
                    newest = newest.max(*sequence);
                }
                whole &= match item {
                    Item::Data { at, end, epoch, .. } => {
                        // What fills up the last sector belongs to it as well.
                        let there =
                            now.is_some_and(|now| now.len() >= end.next_multiple_of(SECTOR));
                        let counts = self.now().epochs.contains_key(&Epoch(*epoch));
                        !counts || (there && same((*at, *end)))
                    }
                    // A segment that ends before its records begin is none.
                    Item::Header { copies, .. } => {
                        any && now.is_some_and(|now| now.len() >= copies[1] * 2)
                    }
                    Item::State { .. } => any,
                };
            }
        }
        Left { newest, whole }
    }
}

pub fn disks() -> Vec<DiskIdentity> {
    ["root", "data"]
        .into_iter()
        .map(|name| DiskIdentity {
            name: name.to_owned(),
            size: 1 << 20,
            file_id: 7,
        })
        .collect()
}

/// What an open log holds.
pub fn durable(log: &EpochLog) -> Result<Durable, LogError> {
    let state = log.state().clone();
    let mut epochs: BTreeMap<Epoch, Vec<Change>> = BTreeMap::new();
    if state.committed.0 - state.applied.0 < 1000 {
        for epoch in state.applied.0 + 1..=state.committed.0 {
            epochs.insert(Epoch(epoch), Vec::new());
        }
    }
    log.replay(|epoch, extent| -> Result<(), LogError> {
        let sum = match extent.content {
            Content::Data(data) => xxh3_64(data),
            Content::Zero | Content::Hole | Content::Trim => 0,
        };
        let found = (extent.disk, extent.offset, extent.len, extent.kind(), sum);
        epochs.entry(epoch).or_default().push(found);
        Ok(())
    })?;
    Ok(Durable { state, epochs })
}

/// All whole logs.
pub fn samples() -> &'static [Sample] {
    static SAMPLES: OnceLock<Vec<Sample>> = OnceLock::new();
    SAMPLES.get_or_init(|| vec![many_segments(1), one_segment(2), reused(3), taken_over(4)])
}

/// A log that is being made.
struct Making {
    storage: Arc<dyn Storage>,
    log: Option<EpochLog>,
    history: BTreeMap<u64, Durable>,
}

impl Making {
    fn new(seed: u64) -> Self {
        let storage: Arc<dyn Storage> = Arc::new(Memory::holding(&Files::new(), seed));
        let log = Some(open(&storage).unwrap());
        let mut making = Self {
            storage,
            log,
            history: BTreeMap::new(),
        };
        making.note();
        making
    }

    /// Writes down what is true now, under the number of the newest record.
    fn note(&mut self) {
        let files = segments(self.storage.as_ref());
        let newest = files.values().flat_map(|file| items(file.as_slice()));
        let newest = newest.map(|placed| placed.sequence).max().unwrap();
        let now = durable(self.log.as_ref().unwrap()).unwrap();
        self.history.insert(newest, now);
    }

    fn call(&mut self, act: impl FnOnce(&mut EpochLog) -> Result<(), LogError>) {
        act(self.log.as_mut().unwrap()).unwrap();
        self.note();
    }

    fn append(&mut self, ahead: u64, extents: &[Extent<'_>]) {
        self.call(|log| {
            let (generation, epoch) = (log.state().generation, log.state().committed.0);
            log.append(generation, Epoch(epoch + 1 + ahead), extents)
        });
    }

    fn commit(&mut self, standby: Option<&str>) {
        self.call(|log| {
            let (generation, epoch) = (log.state().generation, log.state().committed.next());
            log.commit(generation, epoch, standby)
        });
    }

    fn raise(&mut self, owner: &str) {
        self.call(|log| log.raise_generation(Some(owner), "test").map(drop));
    }

    fn applied(&mut self, behind: u64) {
        self.call(|log| {
            let epoch = Epoch(log.state().committed.0 - behind);
            log.mark_applied(epoch)
        });
    }

    fn reopen(&mut self) {
        self.log = None;
        self.log = Some(open(&self.storage).unwrap());
        self.note();
    }

    fn finish(mut self) -> Sample {
        self.log = None;
        let files = segments(self.storage.as_ref());
        let items = files
            .iter()
            .map(|(name, bytes)| (name.clone(), items(bytes.as_slice())))
            .collect();
        Sample {
            files,
            items,
            history: self.history,
        }
    }
}

fn segments(storage: &dyn Storage) -> Files {
    let names = storage.names().unwrap();
    let segments = names.into_iter().filter(|name| name.ends_with(".seg"));
    segments
        .map(|name| {
            let bytes = content(storage, &name);
            (name, Arc::new(bytes))
        })
        .collect()
}

fn data(disk: u16, offset: u64, bytes: &[u8]) -> Extent<'_> {
    Extent {
        disk,
        offset,
        len: bytes.len() as u64,
        content: Content::Data(bytes),
    }
}

fn clear(content: Content<'static>) -> Extent<'static> {
    Extent {
        disk: 1,
        offset: 4096,
        len: 8192,
        content,
    }
}

fn pattern(len: usize, fill: u8) -> Vec<u8> {
    (0_u8..251)
        .cycle()
        .map(|place| place ^ fill)
        .take(len)
        .collect()
}

/// Several segments with applied, unapplied and uncommitted epochs.
fn many_segments(seed: u64) -> Sample {
    let mut making = Making::new(seed);
    making.raise("host-a");
    for (number, len) in [(1, 1000), (2, 6000), (3, 300), (4, 5000), (5, 2500)] {
        let long = pattern(len, number);
        making.append(
            0,
            &[
                data(0, 100, &long),
                clear(Content::Zero),
                data(1, 700, &long[..300]),
            ],
        );
        making.append(1, &[data(0, 9000, &pattern(600, number + 100))]);
        making.commit(Some("host-b"));
        if number == 2 {
            making.applied(1);
        }
    }
    making.commit(Some("host-b"));
    making.append(0, &[data(1, 0, &pattern(700, 9))]);
    making.finish()
}

/// One short segment: changes of the state, an epoch without data, one that waits.
fn one_segment(seed: u64) -> Sample {
    let mut making = Making::new(seed);
    making.call(|log| log.set_mode(Mode::Async { holder: None }));
    making.commit(None);
    making.append(0, &[data(0, 0, &pattern(512, 1)), clear(Content::Hole)]);
    making.commit(None);
    making.finish()
}

/// Segments that were written over older ones, all applied but the last epoch.
fn reused(seed: u64) -> Sample {
    let mut making = Making::new(seed);
    making.raise("host-a");
    for number in 0..8 {
        making.append(0, &[data(0, 512, &pattern(7000, number))]);
        making.commit(None);
        if number < 7 {
            making.applied(0);
        }
    }
    making.finish()
}

/// Two takeovers, data that was given up, a log that was opened again, sync mode at the end.
fn taken_over(seed: u64) -> Sample {
    let mut making = Making::new(seed);
    making.raise("host-a");
    making.append(0, &[data(0, 0, &pattern(100, 1))]);
    making.commit(Some("host-b"));
    making.append(0, &[data(0, 0, &pattern(900, 2))]);
    making.raise("host-b");
    making.append(0, &[clear(Content::Trim)]);
    making.append(1, &[data(1, 0, &pattern(50, 3))]);
    making.commit(Some("host-c"));
    making.reopen();
    making.call(EpochLog::abort);
    making.call(|log| log.set_mode(Mode::Sync));
    making.raise("host-c");
    making.finish()
}
