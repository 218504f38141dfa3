//! Whole histories to be altered, made by the history itself, with what the disks were at each epoch; and a store of objects in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use epoch_log::Epoch;
use epoch_log::history::{ColdStore, Cooling, Retention};
use epoch_log::storage::Storage;
use xxhash_rust::xxh3::xxh3_64;

use super::open;
use crate::log::memory::Memory;
use crate::log::{Files, content};

/// Disks of the group.
pub const DISKS: usize = 2;
/// Length of each, in bytes.
pub const SIZE: usize = 6000;

/// Objects by name.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// A whole history.
pub struct Sample {
    pub files: Files,
    pub objects: Objects,
    /// The disks now.
    pub images: Vec<Vec<u8>>,
    /// The newest epoch, which the images are.
    pub epoch: u64,
    pub time_ms: u64,
    /// Checksum of all disks at each epoch.
    pub epochs: BTreeMap<u64, u64>,
    /// The file of the run that grows.
    pub newest: String,
}

/// Checksum of all disks.
pub fn sum(disks: &[Vec<u8>]) -> u64 {
    xxh3_64(&disks.concat())
}

/// All whole histories: one run, several, and several of which the oldest are in a store.
pub fn samples() -> &'static [Sample] {
    static SAMPLES: OnceLock<Vec<Sample>> = OnceLock::new();
    SAMPLES.get_or_init(|| vec![made(1, 4, false), made(2, 40, false), made(3, 40, true)])
}

fn made(seed: u64, epochs: u64, cold: bool) -> Sample {
    let memory: Arc<dyn Storage> = Arc::new(Memory::holding(&Files::new(), seed));
    let (history, _) = open(&memory, 0, 1_000_000).unwrap();
    let mut images = vec![vec![0; SIZE]; DISKS];
    let mut sums = BTreeMap::from([(0, sum(&images))]);
    let mut time_ms = 1_000_000;
    for epoch in 1..=epochs {
        time_ms += 10;
        // Some epochs change nothing, most some ranges of both disks.
        let writes: Vec<(u16, usize, usize)> = (0..epoch % 4)
            .map(|turn| {
                let random = xxh3_64(&[seed, epoch, turn].map(u64::to_le_bytes).concat()) as usize;
                let from = random % (SIZE - 1);
                ((random >> 4) as u16 & 1, from, (random >> 20) % 1500 + 1)
            })
            .map(|(disk, from, len)| (disk, from, len.min(SIZE - from)))
            .collect();
        let mut capture = history.capture().unwrap();
        for (disk, from, len) in &writes {
            let held = &images[usize::from(*disk)];
            let saved = capture.save(*disk, *from as u64, (from + len) as u64, |at, part| {
                let at = at as usize;
                part.copy_from_slice(&held[at..at + part.len()]);
                Ok(())
            });
            saved.unwrap();
        }
        capture.boundary(Epoch(epoch), time_ms, true).unwrap();
        capture.finish(Epoch(epoch)).unwrap();
        for (disk, from, len) in &writes {
            images[usize::from(*disk)][*from..from + len].fill(epoch as u8);
        }
        history.applied(Epoch(epoch));
        sums.insert(epoch, sum(&images));
        if epoch == 3 {
            history.pin("before", Epoch(2)).unwrap();
        }
    }
    let store = Arc::new(Store::default());
    if cold {
        history.use_cold(Arc::clone(&store) as Arc<dyn ColdStore>);
        let cooling = Cooling {
            after_ms: 150,
            above: u64::MAX,
        };
        let cool = || history.cool(time_ms, &cooling, &Retention::unlimited(), &|| true);
        while !cool().unwrap().is_nothing() {}
        assert!(history.status().cold_runs > 0);
    }
    drop(history);
    let names = memory.names().unwrap();
    let runs = names.iter().filter(|name| name.ends_with(".run"));
    let newest = runs.max().unwrap().clone();
    let file = |name: String| {
        let bytes = content(memory.as_ref(), &name);
        (name, Arc::new(bytes))
    };
    let objects = store.0.lock().unwrap().clone();
    Sample {
        newest,
        files: names.into_iter().map(file).collect(),
        objects,
        images,
        epoch: epochs,
        time_ms,
        epochs: sums,
    }
}

/// A store of objects in memory.
#[derive(Debug, Default)]
pub struct Store(Mutex<Objects>);

impl Store {
    pub fn holding(objects: &Objects) -> Self {
        Self(Mutex::new(objects.clone()))
    }
}

impl ColdStore for Store {
    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn put(&self, name: &str, content: Vec<u8>) -> io::Result<()> {
        self.0.lock().unwrap().insert(name.to_owned(), content);
        Ok(())
    }

    fn size(&self, name: &str) -> io::Result<Option<u64>> {
        let objects = self.0.lock().unwrap();
        Ok(objects.get(name).map(|content| content.len() as u64))
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let objects = self.0.lock().unwrap();
        let content = objects.get(name).ok_or(io::ErrorKind::NotFound)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = content
            .get(from..)
            .and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.lock().unwrap().remove(name);
        Ok(())
    }
}
