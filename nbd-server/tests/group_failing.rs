//! A group whose log fails at something that no request waits for: what it says of the images. Its threads are turns here, on a clock of
//! the test, so that what would wait for ever is seen at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod group_common;

use std::future::Future;
use std::io::{self, IoSlice};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use epoch_log::history::Options;
use epoch_log::storage::{Storage, StorageFile, StorageLock, directory};
use epoch_log::{LogError, LogOptions};
use group_common::{Attached, BLOCK, Site, attach};
use nbd_server::control::api::ErrorKind;
use nbd_server::export::IoError;
use nbd_server::group::barriers::{Gate, Input};
use nbd_server::group::stepped::{LogPlace, Stepped};
use nbd_server::group::{GroupMode, Image};
use nbd_server::{Epoch, Generation};

/// Which operations fail with EIO from now on.
#[derive(Debug, Default)]
struct Faults {
    writes: AtomicBool,
}

const EIO: i32 = 5;

fn fail_if(fails: bool) -> io::Result<()> {
    if fails {
        Err(io::Error::from_raw_os_error(EIO))
    } else {
        Ok(())
    }
}

/// A directory of real files that fails when it is told to.
#[derive(Debug)]
struct Failing {
    real: Arc<dyn Storage>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct FailingFile {
    real: Box<dyn StorageFile>,
    faults: Arc<Faults>,
}

impl Failing {
    fn file(&self, real: Box<dyn StorageFile>) -> Box<dyn StorageFile> {
        let faults = Arc::clone(&self.faults);
        Box::new(FailingFile { real, faults })
    }
}

impl Storage for Failing {
    fn path(&self) -> &Path {
        self.real.path()
    }

    fn prepare(&self) -> io::Result<()> {
        self.real.prepare()
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, LogError> {
        self.real.lock()
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn StorageFile>> {
        Ok(self.file(self.real.create(name)?))
    }

    fn open(&self, name: &str, writable: bool) -> io::Result<Box<dyn StorageFile>> {
        Ok(self.file(self.real.open(name, writable)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.real.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.real.remove(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.real.sync()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.real.names()
    }
}

impl StorageFile for FailingFile {
    fn size(&self) -> io::Result<u64> {
        self.real.size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.real.read_at(buffer, offset)
    }

    fn write_at(&self, slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        fail_if(self.faults.writes.load(Ordering::SeqCst))?;
        self.real.write_at(slices, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.real.sync()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.real.truncate(len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.real.allocate(len)
    }
}

/// A group of one disk over a log that can fail, and the clock of its turns.
struct Rig {
    stepped: Stepped,
    faults: Arc<Faults>,
    now: Instant,
    site: Site,
}

impl Rig {
    fn new() -> Self {
        let site = Site::new(GroupMode::Sync, &["root"]);
        let faults = Arc::new(Faults::default());
        let storage = Failing {
            real: directory(&site.config.log),
            faults: Arc::clone(&faults),
        };
        // Segments of an epoch or so, which are removed when the images have them.
        let options = LogOptions {
            segment_bytes: 64 << 10,
            spare_segments: 0,
        };
        let now = Instant::now();
        let image = Image::open(&site.image(0), false).unwrap();
        let place = LogPlace {
            storage: Arc::new(storage),
            options,
            history: Options::default(),
        };
        let stepped = Stepped::open(&site.config, vec![image], place, now).unwrap();
        Self {
            stepped,
            faults,
            now,
            site,
        }
    }

    /// Asks, and lets the committer take turns until it has answered. The images get nothing meanwhile.
    fn ask(&mut self, input: Input) -> Result<(Generation, Epoch), ErrorKind> {
        let group = Arc::clone(self.stepped.group());
        let mut answer = pin!(group.request(input));
        for _ in 0..100 {
            self.stepped.commit_turn(self.now);
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(answer) = answer.as_mut().poll(&mut context) {
                let answer = answer.map_err(|error| error.kind())?;
                return Ok((answer.generation, answer.committed));
            }
        }
        panic!("no answer");
    }

    /// A checkpoint of some blocks, committed for standby `b`.
    fn checkpoint(&mut self, generation: Generation, disk: &Attached, byte: u8) -> Epoch {
        for block in 0..12 {
            disk.write(block, byte);
        }
        let sealed = self.stepped.group().try_seal(generation, None).unwrap();
        self.commit(generation, sealed.epoch);
        sealed.epoch
    }

    fn commit(&mut self, generation: Generation, epoch: Epoch) {
        let standby = Some("b".to_owned());
        let input = Input::Commit {
            generation,
            epoch,
            standby,
        };
        assert_eq!(self.ask(input), Ok((generation, epoch)));
    }

    /// Under the protection of standby `b`, with two large epochs committed that the images don't have.
    fn protected() -> (Self, Generation, Attached) {
        let mut rig = Self::new();
        let owner = "a".to_owned();
        let (generation, _) = rig.ask(Input::AttachSource { owner }).unwrap();
        rig.stepped.group().park("b").unwrap();
        let disk = attach(rig.stepped.group(), "root", Some("a"));
        let first = rig.stepped.group().try_seal(generation, None).unwrap();
        rig.ask(Input::Advance).unwrap();
        rig.commit(generation, first.epoch);
        rig.checkpoint(generation, &disk, 1);
        rig.checkpoint(generation, &disk, 2);
        (rig, generation, disk)
    }

    /// Lets time pass and both threads do what they have to do.
    fn settle(&mut self) {
        for _ in 0..50 {
            self.now += Duration::from_millis(100);
            self.stepped.apply_turn(self.now);
            self.stepped.commit_turn(self.now);
        }
    }
}

/// Found by the simulator (seed 2298): the new owner's writes waited for ever for images that the log could not speak of, and nothing
/// said why.
#[test]
fn a_log_that_fails_while_it_records_what_the_images_hold_fails_the_writes_that_wait_for_it() {
    let (mut rig, generation, old) = Rig::protected();
    let standby = "b".to_owned();
    let (raised, committed) = rig.ask(Input::Takeover { standby }).unwrap();
    assert!(raised > generation);
    assert!(rig.stepped.standing().applied < committed);
    assert!(old.is_cut());
    let disk = attach(rig.stepped.group(), "root", Some("b"));
    let write = || disk.export.write_now(0, &[3; BLOCK]);
    assert_eq!(write(), Ok(false), "it waits for the images");

    rig.faults.writes.store(true, Ordering::SeqCst);
    rig.settle();
    assert_eq!(rig.site.image_block(0, 11), vec![2; BLOCK]);
    assert_eq!(rig.stepped.standing().gate, Gate::Broken);
    assert_eq!(write(), Err(IoError::Io));
    // And it says so.
    let said = rig.stepped.group().status().last_error;
    assert!(said.is_some());
    let drain = Input::DrainToSync {
        generation: raised,
        protection: None,
    };
    assert_eq!(rig.ask(drain), Err(ErrorKind::Io));

    // Nothing is lost: the storage is well, and the gateway is started again.
    rig.faults.writes.store(false, Ordering::SeqCst);
    let Rig { stepped, site, .. } = rig;
    drop((disk, old, stepped));
    let status = site.open().status();
    assert_eq!(status.committed, committed);
    assert_eq!(status.owner.as_deref(), Some("b"));
}

/// Found by the simulator (seed 96258): the first seal was answered although there was no record of *async mode*. A gateway that died next
/// knew no such epoch, and the source asked for its commit for ever.
#[test]
fn a_log_that_fails_while_it_records_async_mode_refuses_the_first_seal() {
    let mut rig = Rig::new();
    let owner = "a".to_owned();
    let (generation, _) = rig.ask(Input::AttachSource { owner }).unwrap();
    rig.faults.writes.store(true, Ordering::SeqCst);
    let group = Arc::clone(rig.stepped.group());
    let sealed = group.try_seal(generation, None).unwrap();
    assert!(!sealed.safe, "there is no record yet");
    // The log fails before anybody asks for the record.
    rig.stepped.commit_turn(rig.now);
    let mut safe = pin!(group.make_safe(generation, sealed));
    let mut context = Context::from_waker(Waker::noop());
    assert!(safe.as_mut().poll(&mut context).is_pending());
    rig.settle();
    let Poll::Ready(answer) = safe.as_mut().poll(&mut context) else {
        panic!("no answer");
    };
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Io);
}
