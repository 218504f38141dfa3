//! A group as plainly as possible: images in memory, a history in files, and what every epoch was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::super::{
    Anchor, ColdStore, Cooling, History, HistoryError, Maintained, Opened, Options, Retention, View,
};
use super::store::Store;
use crate::Epoch;
use crate::storage::directory;

pub const DISKS: usize = 2;
pub const SIZE: usize = 6000;
pub const TINY: Options = Options {
    run_bytes: 48 << 10,
    run_entries: 60,
    object_bytes: 20_000,
};

/// A range of a disk, and the byte that it is filled with.
pub type Write = (u16, usize, usize, u8);

pub struct Group {
    pub dir: PathBuf,
    pub history: Option<Arc<History>>,
    pub options: Options,
    /// Where what is old goes, if it goes anywhere.
    pub store: Option<Arc<Store>>,
    pub images: Vec<Vec<u8>>,
    pub committed: u64,
    pub applied: u64,
    pub time: u64,
    /// Checksum of all disks at each epoch.
    pub epochs: BTreeMap<u64, u64>,
}

impl Group {
    pub fn new(dir: &Path) -> Self {
        let mut group = Self {
            dir: dir.to_owned(),
            history: None,
            options: TINY,
            store: None,
            images: vec![vec![0; SIZE]; DISKS],
            committed: 0,
            applied: 0,
            time: 1_000_000,
            epochs: BTreeMap::new(),
        };
        group.epochs.insert(0, sum(&group.images));
        group.open().unwrap();
        group
    }

    pub fn open(&mut self) -> Result<Opened, HistoryError> {
        self.history = None;
        let anchor = Anchor {
            log_id: [7; 16],
            applied: Epoch(self.applied),
            committed: Epoch(self.committed),
        };
        let (history, opened) =
            History::open(directory(&self.dir), anchor, self.options, self.time)?;
        if let Some(store) = &self.store {
            history.use_cold(Arc::clone(store) as Arc<dyn ColdStore>);
        }
        self.history = Some(history);
        Ok(opened)
    }

    pub fn history(&self) -> &Arc<History> {
        self.history.as_ref().unwrap()
    }

    /// Commits these epochs, and saves what they will change, all at once.
    pub fn save(&mut self, epochs: &[Vec<Write>]) -> Result<(), HistoryError> {
        let history = Arc::clone(self.history());
        let mut capture = history.capture().unwrap();
        let mut now = self.images.clone();
        let mut epoch = self.applied;
        for writes in epochs {
            epoch += 1;
            self.time += 10;
            if epoch > capture.last().epoch.0 {
                for (disk, from, len, _) in writes {
                    let held = &now[usize::from(*disk)];
                    capture.save(*disk, *from as u64, (*from + *len) as u64, |at, buffer| {
                        let at = at as usize;
                        buffer.copy_from_slice(&held[at..at + buffer.len()]);
                        Ok(())
                    })?;
                }
                capture.boundary(Epoch(epoch), self.time, true)?;
            }
            for (disk, from, len, byte) in writes {
                now[usize::from(*disk)][*from..*from + *len].fill(*byte);
            }
            // Done again after a crash, it finds images that may hold parts of what comes later.
            self.epochs.entry(epoch).or_insert_with(|| sum(&now));
        }
        self.committed = self.committed.max(epoch);
        capture.finish(Epoch(epoch))
    }

    /// Brings them into the images, as far as `writes` of them.
    pub fn apply(&mut self, epochs: &[Vec<Write>], writes: usize) {
        for (disk, from, len, byte) in epochs.iter().flatten().take(writes) {
            self.images[usize::from(*disk)][*from..*from + *len].fill(*byte);
        }
    }

    pub fn applied(&mut self) {
        self.applied = self.committed;
        self.history().applied(Epoch(self.applied));
    }

    pub fn run(&mut self, epochs: &[Vec<Write>]) {
        self.save(epochs).unwrap();
        self.apply(epochs, usize::MAX);
        self.applied();
    }

    pub fn maintain(&self, retention: &Retention) -> Maintained {
        self.history().maintain(self.time, retention).unwrap()
    }

    /// Moves what is due to the store until nothing is left to do.
    pub fn cool(&self, after_ms: u64, retention: &Retention) {
        let cooling = Cooling {
            after_ms,
            above: u64::MAX,
        };
        let history = self.history();
        while !history
            .cool(self.time, &cooling, retention, &|| true)
            .unwrap()
            .is_nothing()
        {}
    }

    /// What a view shows.
    pub fn read(&self, view: &View) -> Vec<Vec<u8>> {
        let read = |disk: usize| {
            let mut buffer = vec![0xee; SIZE];
            let image = &self.images[disk];
            view.read(disk as u16, 0, &mut buffer, |at, part| {
                let at = at as usize;
                part.copy_from_slice(&image[at..at + part.len()]);
                Ok(())
            })
            .unwrap();
            buffer
        };
        (0..DISKS).map(read).collect()
    }

    /// Every point that is kept reads as it was; returns the epochs.
    pub fn check(&self) -> Vec<u64> {
        let mut points = Vec::new();
        self.history()
            .visit_points(Epoch(0), |point| points.push(point))
            .unwrap();
        for point in &points {
            let view = self.history().view(point.epoch).unwrap();
            let read = sum(&self.read(&view));
            for epoch in [point.epoch, point.until] {
                assert_eq!(
                    Some(&read),
                    self.epochs.get(&epoch.0),
                    "epoch {epoch} of {point:?}"
                );
            }
        }
        points.iter().map(|point| point.epoch.0).collect()
    }
}

pub fn sum(images: &[Vec<u8>]) -> u64 {
    xxh3_64(&images.concat())
}
