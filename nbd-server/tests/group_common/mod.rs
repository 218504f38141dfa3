//! What the tests of groups share: a site of images and a log in a temporary directory.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, missing_docs)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use nbd_server::export::{Cutter, Export};
use nbd_server::group::barriers::Input;
use nbd_server::group::{
    DiskConfig, DiskExport, Group, GroupConfig, GroupError, GroupMode, Refusal, Sealed,
};
use nbd_server::{Epoch, Generation};
use tempfile::TempDir;

pub const SIZE: u64 = 1 << 20;
pub const BLOCK: usize = 4096;

pub struct Site {
    pub dir: TempDir,
    pub config: GroupConfig,
}

impl Site {
    pub fn new(mode: GroupMode, disks: &[&str]) -> Self {
        let dir = TempDir::new().unwrap();
        let disks = disks
            .iter()
            .map(|name| {
                let image = dir.path().join(format!("{name}.img"));
                File::create(&image).unwrap().set_len(SIZE).unwrap();
                DiskConfig {
                    name: (*name).to_owned(),
                    image,
                    read_only: false,
                    export: None,
                }
            })
            .collect();
        let config = GroupConfig {
            name: "vm".to_owned(),
            log: dir.path().join("log"),
            mode,
            memory_budget_mib: 64,
            epoch_memory: PathBuf::new(),
            epoch_interval_ms: 20,
            history: None,
            disks,
        };
        Self { dir, config }
    }

    /// The same, with held epochs that outlive a process: dropping the group without a stop is its crash.
    pub fn with_memory(mode: GroupMode, disks: &[&str]) -> Self {
        let mut site = Self::new(mode, disks);
        site.config.epoch_memory = site.dir.path().to_owned();
        site
    }

    pub fn open(&self) -> Group {
        Group::open(&self.config, &mut |_| {}).unwrap()
    }

    pub fn image(&self, disk: usize) -> PathBuf {
        self.config.disks[disk].image.clone()
    }

    pub fn image_block(&self, disk: usize, block: u64) -> Vec<u8> {
        let mut buf = vec![0; BLOCK];
        File::open(self.image(disk))
            .unwrap()
            .read_exact_at(&mut buf, block * BLOCK as u64)
            .unwrap();
        buf
    }
}

/// An attachment that knows whether it was cut.
pub struct Attached {
    pub export: DiskExport,
    pub cut: Arc<AtomicBool>,
}

impl Attached {
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    pub fn write(&self, block: u64, byte: u8) {
        self.export
            .write(block * BLOCK as u64, Bytes::from(vec![byte; BLOCK]), false)
            .unwrap();
    }

    pub fn read(&self, block: u64) -> u8 {
        let mut buf = vec![0xEE; BLOCK];
        self.export.read(block * BLOCK as u64, &mut buf).unwrap();
        assert!(buf.iter().all(|byte| *byte == buf[0]), "a torn block");
        buf[0]
    }
}

pub fn attach(group: &Group, disk: &str, instance: Option<&str>) -> Attached {
    try_attach(group, disk, instance).unwrap()
}

pub fn try_attach(group: &Group, disk: &str, instance: Option<&str>) -> Result<Attached, Refusal> {
    let cut = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&cut);
    let cutter = Cutter::new(move || seen.store(true, Ordering::SeqCst), || {});
    let export = group
        .attach(disk, instance, cutter)
        .expect("the disk exists")?;
    Ok(Attached { export, cut })
}

pub fn attach_source(group: &Group, owner: &str) -> Generation {
    group
        .request_blocking(Input::AttachSource {
            owner: owner.into(),
        })
        .unwrap()
        .generation
}

pub fn commit(
    group: &Group,
    generation: Generation,
    epoch: Epoch,
    standby: &str,
) -> Result<Epoch, GroupError> {
    let input = Input::Commit {
        generation,
        epoch,
        standby: Some(standby.into()),
    };
    group.request_blocking(input).map(|answer| answer.committed)
}

pub fn checkpoint(group: &Group, generation: Generation, standby: &str) -> Sealed {
    let sealed = group.seal(generation).unwrap();
    assert_eq!(
        commit(group, generation, sealed.epoch, standby).unwrap(),
        sealed.epoch
    );
    sealed
}

/// Waits, without a limit, for what must come; the test's own time limit is the runner's.
pub fn until(mut what: impl FnMut() -> bool) {
    while !what() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
