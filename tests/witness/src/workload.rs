//! One worker: random operations on its extents and its table, and between them a stretch of the sweep.
//! It keeps memory's beliefs, asks the judge about all that it reads, and never waits for another worker.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::block::{self, BLOCK_SIZE, Image, Place};
use crate::config::Config;
use crate::disk::{Buffer, Disk, Zeroing};
use crate::judge::judge;
use crate::memory::{Content, EXTENT_BLOCKS, Extent, share};
use crate::report::{Report, now, uptime};
use crate::rng::Rng;
use crate::table::Table;

/// Random operations between two stretches of a sweep: few, so that a sweep is soon complete, but enough that most
/// requests are writes in disorder.
const OPS_PER_STRETCH: u64 = 4;
/// Blocks of the longest random write or read.
const LONGEST: usize = 16;

/// One of the witness' threads.
#[derive(Debug)]
pub struct Worker {
    index: usize,
    disks: Arc<Vec<Disk>>,
    report: Arc<Report>,
    extents: Vec<Extent>,
    sweep_at: usize,
    table: Table,
    dirty: usize,
    rng: Rng,
    buffer: Buffer,
    period: Duration,
    ops: Option<u64>,
    // Those that the disks are not known to lack.
    zeroings: Vec<Zeroing>,
}

impl Worker {
    /// Worker `index` of `config.writers`.
    pub fn new(index: usize, config: &Config, disks: Arc<Vec<Disk>>, report: Arc<Report>) -> Self {
        let blocks: Vec<_> = disks.iter().map(Disk::blocks).collect();
        let seed = if config.seed == 0 {
            report.run
        } else {
            config.seed
        };
        let writers = config.writers as u64;
        let pages = config.mem_mib.saturating_mul(1024 * 1024 / BLOCK_SIZE) / config.writers;
        let period = Duration::from_secs(writers).as_nanos() / u128::from(config.rate.max(1));
        Self {
            index,
            extents: share(index, config.writers, &blocks),
            sweep_at: 0,
            table: Table::new(report.run, pages),
            dirty: config.dirty,
            rng: Rng::new(seed.wrapping_add(index as u64)),
            buffer: Buffer::new(EXTENT_BLOCKS),
            period: if config.rate == 0 {
                Duration::ZERO
            } else {
                Duration::from_nanos(u64::try_from(period).unwrap_or(u64::MAX))
            },
            ops: (config.ops > 0).then(|| config.ops.div_ceil(writers)),
            zeroings: vec![Zeroing::Unmap, Zeroing::Allocate, Zeroing::Discard],
            disks,
            report,
        }
    }

    /// Works until the limit of operations, if there is one; then verifies all of this worker's blocks once more.
    pub fn run(&mut self) {
        let mut due = Instant::now();
        let mut done = 0;
        while self.ops.is_none_or(|ops| done < ops) {
            self.step();
            done += 1;
            if done % OPS_PER_STRETCH == 0 {
                self.sweep_stretch();
            }
            // After a stall the lost time is not made up for: a burst would look like another workload.
            let now = Instant::now();
            due = (due + self.period).max(now);
            thread::sleep(due - now);
        }
        for at in 0..self.extents.len() {
            self.check(at, 0, self.extents[at].beliefs.len());
        }
    }

    /// One random operation on a disk, and the dirtying of memory that goes with it.
    pub fn step(&mut self) {
        let pages = self.table.len();
        for _ in 0..self.dirty {
            self.table.write_next();
            if let Err(bad) = self.table.verify_next() {
                self.report.bad_page(bad);
            }
        }
        add(
            &self.report.counts.memory_pages,
            (self.table.len() - pages) as u64,
        );
        if self.extents.is_empty() {
            return;
        }
        let extent = self.rng.below(self.extents.len());
        let size = self.extents[extent].beliefs.len();
        let at = self.rng.below(size);
        let longest = LONGEST.min(size - at);
        let several = 1 + self.rng.below(longest);
        match self.rng.below(100) {
            0..55 => self.write(extent, at, 1),
            55..70 => self.write(extent, at, several),
            70..78 => self.zero(extent, at, several),
            _ => self.check(extent, at, several),
        }
        if self.rng.below(8) == 0 {
            self.flush(self.extents[extent].disk);
        }
    }

    /// Verifies the next extent of the sweep, if the sweep in progress still needs this worker.
    pub fn sweep_stretch(&mut self) {
        if self.disks.is_empty() || !self.report.sweeps().may_sweep(self.index) {
            return;
        }
        if let Some(extent) = self.extents.get(self.sweep_at) {
            self.check(self.sweep_at, 0, extent.beliefs.len());
            self.sweep_at += 1;
        }
        if self.sweep_at >= self.extents.len() {
            self.sweep_at = 0;
            self.report.sweeps().end_share(self.index, uptime());
        }
    }

    fn write(&mut self, extent: usize, at: usize, len: usize) {
        let extent = &mut self.extents[extent];
        let offset = extent.offset(at);
        let (disk, first, run, stamp) = (extent.disk, extent.first + at, self.report.run, now());
        let bytes = self.buffer.blocks_mut(len);
        let beliefs = &mut extent.beliefs[at..at + len];
        for (i, (bytes, belief)) in bytes
            .chunks_exact_mut(BLOCK_SIZE)
            .zip(beliefs.iter_mut())
            .enumerate()
        {
            let version = belief.next_version();
            block::encode(
                bytes,
                &Image {
                    run,
                    place: place(disk, first + i),
                    version,
                    stamp,
                },
            );
            belief.begin(Content::Written { version, stamp });
        }
        match self.disks[disk].write(bytes, offset) {
            Ok(()) => beliefs.iter_mut().for_each(|belief| {
                belief.settle(Content::Written {
                    version: belief.last_version(),
                    stamp,
                })
            }),
            Err(error) => self.report.io_error("write", disk, first, &error),
        }
        add(&self.report.counts.writes, 1);
    }

    fn zero(&mut self, extent: usize, at: usize, len: usize) {
        let choice = self.rng.below(self.zeroings.len());
        let Some(&how) = self.zeroings.get(choice) else {
            return;
        };
        let extent = &mut self.extents[extent];
        let offset = extent.offset(at);
        let (disk, first) = (extent.disk, extent.first + at);
        let beliefs = &mut extent.beliefs[at..at + len];
        for belief in beliefs.iter_mut() {
            belief.begin(Content::Zeros {
                version: belief.next_version(),
            });
        }
        match self.disks[disk].zero(how, offset, (len * BLOCK_SIZE) as u64) {
            Ok(()) if how == Zeroing::Discard => add(&self.report.counts.discards, 1),
            Ok(()) => {
                beliefs.iter_mut().for_each(|belief| {
                    belief.settle(Content::Zeros {
                        version: belief.last_version(),
                    })
                });
                add(&self.report.counts.zeros, 1);
            }
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                beliefs.iter_mut().for_each(|belief| {
                    belief.cancel(Content::Zeros {
                        version: belief.last_version(),
                    })
                });
                self.zeroings.retain(|&other| other != how);
            }
            Err(error) => self.report.io_error("zero", disk, first, &error),
        }
    }

    fn flush(&self, disk: usize) {
        if let Err(error) = self.disks[disk].flush() {
            self.report.io_error("flush", disk, 0, &error);
        }
        add(&self.report.counts.flushes, 1);
    }

    /// Reads `len` blocks of an extent, and judges each.
    fn check(&mut self, extent: usize, at: usize, len: usize) {
        let extent = &mut self.extents[extent];
        let offset = extent.offset(at);
        let (disk, first) = (extent.disk, extent.first + at);
        let bytes = self.buffer.blocks_mut(len);
        add(&self.report.counts.reads, 1);
        if let Err(error) = self.disks[disk].read(bytes, offset) {
            self.report.io_error("read", disk, first, &error);
            return;
        }
        let beliefs = &mut extent.beliefs[at..at + len];
        for (i, (bytes, belief)) in bytes.chunks_exact(BLOCK_SIZE).zip(beliefs).enumerate() {
            match judge(
                self.report.run,
                place(disk, first + i),
                belief,
                block::decode(bytes),
            ) {
                Ok(found) => belief.settle(found),
                Err(mismatch) => self.report.mismatch(&mismatch),
            }
        }
        add(&self.report.counts.checked, len as u64);
    }
}

/// The name of a block. Disks of 16 TiB and more would not fit; the setting `blocks` keeps the witness far below.
fn place(disk: usize, block: usize) -> Place {
    Place {
        disk: u32::try_from(disk).unwrap_or(u32::MAX),
        block: u32::try_from(block).unwrap_or(u32::MAX),
    }
}

fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use super::*;
    use crate::block::Observed;

    /// Two plain files, one worker that has written to both, and all that a test needs to tamper with them.
    struct Bench {
        paths: Vec<PathBuf>,
        worker: Worker,
        report: Arc<Report>,
        _dir: tempfile::TempDir,
    }

    fn bench(workers: usize) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let paths = vec![dir.path().join("a"), dir.path().join("b")];
        for path in &paths {
            OpenOptions::new()
                .create_new(true)
                .write(true)
                .open(path)
                .unwrap()
                .set_len(200 * 4096)
                .unwrap();
        }
        let disks = Arc::new(
            paths
                .iter()
                .map(|path| Disk::open(path, 4096).unwrap())
                .collect::<Vec<_>>(),
        );
        let report = Arc::new(Report::new(42, 2, workers));
        let config = Config {
            writers: workers,
            rate: 0,
            mem_mib: 1,
            seed: 5,
            ..Config::default()
        };
        let mut worker = Worker::new(0, &config, disks, Arc::clone(&report));
        (0..500).for_each(|_| worker.step());
        Bench {
            paths,
            worker,
            report,
            _dir: dir,
        }
    }

    impl Bench {
        fn sweep(&mut self) -> (u64, u64) {
            let pass = self.report.sweeps().passes();
            while self.report.sweeps().passes() == pass {
                self.worker.sweep_stretch();
            }
            (
                self.report.counts.mismatches.load(Ordering::Relaxed),
                self.report.counts.io_errors.load(Ordering::Relaxed),
            )
        }

        /// A block of disk 1 that holds a write of version 2 or more, and its bytes.
        fn written(&self) -> (usize, Vec<u8>) {
            for extent in self.worker.extents.iter().filter(|extent| extent.disk == 1) {
                for (i, belief) in extent.beliefs.iter().enumerate() {
                    let single = belief.legal().count() == 1;
                    if single && matches!(belief.settled(), Content::Written { version: 2.., .. }) {
                        let mut bytes = vec![0; BLOCK_SIZE];
                        let file = OpenOptions::new().read(true).open(&self.paths[1]).unwrap();
                        file.read_exact_at(&mut bytes, extent.offset(i)).unwrap();
                        return (extent.first + i, bytes);
                    }
                }
            }
            panic!("500 operations write some block twice");
        }

        fn put(&self, block: usize, bytes: &[u8]) {
            let file = OpenOptions::new().write(true).open(&self.paths[1]).unwrap();
            file.write_all_at(bytes, (block * BLOCK_SIZE) as u64)
                .unwrap();
            file.sync_all().unwrap();
        }
    }

    #[test]
    fn an_honest_disk_is_never_accused() {
        let mut bench = bench(1);
        for _ in 0..20 {
            (0..100).for_each(|_| bench.worker.step());
            assert_eq!(bench.sweep(), (0, 0));
        }
        assert!(
            bench.report.counts.zeros.load(Ordering::Relaxed) > 0,
            "the file system can punch holes"
        );
        assert_eq!(bench.report.counts.memory_errors.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn each_wrong_block_is_found_once_a_sweep() {
        let mut bench = bench(1);
        let (block, good) = bench.written();
        let Observed::Image(image) = block::decode(&good) else {
            panic!("{:?}", block::decode(&good))
        };
        let encoded = |image: Image| {
            let mut bytes = vec![0; BLOCK_SIZE];
            block::encode(&mut bytes, &image);
            bytes
        };
        let older = encoded(Image {
            version: image.version - 1,
            ..image
        });
        let newer = encoded(Image {
            version: image.version + 1,
            ..image
        });
        let twin = encoded(Image {
            stamp: image.stamp + 1,
            ..image
        });
        let mut torn = good.clone();
        torn[512..1024].copy_from_slice(&older[512..1024]);
        let zeros = vec![0; BLOCK_SIZE];
        let mut expected = 0;
        assert_eq!(bench.sweep(), (expected, 0));
        for wrong in [
            &older,
            &newer,
            &twin,
            &torn,
            &zeros,
            &vec![0x11; BLOCK_SIZE],
        ] {
            bench.put(block, wrong);
            expected += 1;
            assert_eq!(bench.sweep(), (expected, 0));
            bench.put(block, &good);
            assert_eq!(bench.sweep(), (expected, 0), "the block is good again");
        }
    }

    #[test]
    fn a_disk_rolled_back_alone_is_found() {
        let mut bench = bench(1);
        let before = std::fs::read(&bench.paths[1]).unwrap();
        (0..50).for_each(|_| bench.worker.step());
        assert_eq!(bench.sweep(), (0, 0));
        bench.put(0, &before);
        assert!(bench.sweep().0 > 0, "50 operations write to disk 1");
    }

    #[test]
    fn a_sweep_waits_for_the_other_worker() {
        let bench = &mut bench(2);
        (0..100).for_each(|_| bench.worker.sweep_stretch());
        assert_eq!(bench.report.sweeps().passes(), 0);
        bench.report.sweeps().end_share(1, 1.0);
        assert_eq!(bench.report.sweeps().passes(), 1);
    }
}
