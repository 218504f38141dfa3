//! What the tests of changes since a point share: a group with a history, served on a socket. The test has `group_common` and
//! `nbd_common` as well.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, missing_docs)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use nbd_server::Epoch;
use nbd_server::export::{Cutter, Export, ExportDirectory};
use nbd_server::group::directory::{Contents, Directory};
use nbd_server::group::history::HistoryConfig;
use nbd_server::group::{Group, GroupMode};
use nbd_server::limits::Limits;
use nbd_server::server::{ListenAddress, Server};

use crate::group_common::{SIZE, Site, attach, until};
use crate::nbd_common::extended::{BLOCK_STATUS, Extended, status};

pub const DISKS: [&str; 2] = ["root", "data"];
/// Id of the first context with a point in time.
pub const FIRST: u32 = 3;

/// A group with a history, served on a socket.
pub struct Running {
    pub site: Site,
    group: Option<Arc<Group>>,
    server: Option<Server>,
}

impl Running {
    pub fn new() -> Self {
        let mut site = Site::new(GroupMode::Async, &DISKS);
        // Commits come when something is flushed.
        site.config.epoch_interval_ms = 3_600_000;
        site.config.history = Some(HistoryConfig::default());
        let mut this = Self {
            site,
            group: None,
            server: None,
        };
        this.start();
        this
    }

    pub fn start(&mut self) {
        let group = Arc::new(self.site.open());
        let groups = BTreeMap::from([("vm".to_owned(), Arc::clone(&group))]);
        let contents = Contents {
            groups,
            ..Contents::default()
        };
        let directory: Arc<dyn ExportDirectory> = Arc::new(Directory::new(contents));
        let server = Server::new(directory, Limits::default());
        let _ = std::fs::remove_file(self.socket());
        server.listen(&ListenAddress::Unix(self.socket())).unwrap();
        (self.group, self.server) = (Some(group), Some(server));
    }

    /// Ends the gateway, in order or by a crash, and starts it again.
    pub fn restart(&mut self, orderly: bool) {
        let group = self.group.take().unwrap();
        until(|| group.connections() == 0);
        if orderly {
            group.stop();
        }
        // The server has the directory, and that has the group.
        self.server = None;
        let mut last = Some(group);
        until(|| match Arc::try_unwrap(last.take().unwrap()) {
            Ok(group) => {
                drop(group);
                true
            }
            Err(group) => {
                last = Some(group);
                false
            }
        });
        self.start();
    }

    pub fn group(&self) -> &Group {
        self.group.as_deref().unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.site.dir.path().join("nbd.sock")
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// What an export says has changed since a point, by bytes.
    pub fn changed(&self, export: &str, context: &str) -> Vec<bool> {
        let mut client = Extended::attach(&self.socket(), export, &[context]);
        let mut changed = Vec::new();
        while changed.len() < SIZE as usize {
            let at = changed.len() as u64;
            let chunks = client.ask(BLOCK_STATUS, 0, at, SIZE - at, &[]);
            let (id, extents) = status(&chunks[0]);
            assert_eq!((chunks.len(), id), (1, FIRST));
            for (len, flags) in extents {
                assert!(flags < 2, "flags {flags}");
                changed.resize(changed.len() + len as usize, flags == 1);
            }
        }
        assert_eq!(changed.len(), SIZE as usize);
        changed
    }

    pub fn read(&self, disk: &str, point: Option<&str>) -> Vec<u8> {
        let attached = self
            .group()
            .attach_any(disk, point, Cutter::inert())
            .unwrap();
        let mut all = vec![0xee; SIZE as usize];
        attached.unwrap().read(0, &mut all).unwrap();
        all
    }

    /// Waits until the images have all that is committed.
    pub fn apply(&self) {
        let committed = self.group().status().committed;
        let point = format!("epoch={committed}").parse().unwrap();
        self.group().view(&point).unwrap();
    }
}

pub fn block(running: &Running, number: u64, byte: u8) {
    let source = attach(running.group(), "root", None);
    source.write(number, byte);
    source.export.flush().unwrap();
}

pub fn pin(running: &Running, name: &str) -> u64 {
    let committed = running.group().status().committed;
    running.apply();
    let past = &running.group().history().unwrap().past;
    past.pin(name, Epoch(committed.0)).unwrap();
    committed.0
}

/// Three blocks and two pins: `a`, then block 1 and 2, then `b`, then block 4.
pub fn two_pins() -> (Running, u64, u64) {
    let running = Running::new();
    block(&running, 0, 1);
    let a = pin(&running, "a");
    block(&running, 1, 2);
    block(&running, 2, 3);
    let b = pin(&running, "b");
    block(&running, 4, 4);
    (running, a, b)
}
