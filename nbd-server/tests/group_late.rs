//! A takeover that arrives late, while its source lives: what the disks hold afterwards, and who may write to them.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod group_common;

use bytes::Bytes;
use group_common::{Attached, BLOCK, Site, attach, attach_source, commit};
use nbd_server::control::api::ErrorKind;
use nbd_server::export::Export;
use nbd_server::group::barriers::{Input, Protection, SealNumber};
use nbd_server::group::{Group, GroupMode};
use nbd_server::{Epoch, Generation};

/// A source `a`, whose VM runs on, and its disk.
struct Source<'a> {
    group: &'a Group,
    generation: Generation,
    disk: Attached,
    protection: u64,
}

impl<'a> Source<'a> {
    fn attach(group: &'a Group) -> Self {
        Self {
            group,
            generation: attach_source(group, "a"),
            disk: attach(group, "root", Some("a")),
            protection: 0,
        }
    }

    fn seal(&self) -> Result<Epoch, ErrorKind> {
        let number = SealNumber {
            epoch: Epoch(self.group.status().committed.0 + 1),
            protection: Some(Protection(self.protection)),
        };
        let sealed = self.group.seal_as(self.generation, Some(number));
        sealed.map(|sealed| sealed.epoch).map_err(|e| e.kind())
    }

    /// The next epoch, committed under `standby`.
    fn checkpoint(&self, standby: &str) -> Epoch {
        let epoch = self.seal().unwrap();
        commit(self.group, self.generation, epoch, standby).unwrap()
    }

    /// A new protection, by `standby`.
    fn protect(&mut self, standby: &str) -> Epoch {
        self.protection += 1;
        self.group.park(standby).unwrap();
        self.checkpoint(standby)
    }

    /// Gives the standby up.
    fn drain(&self) -> Result<(), ErrorKind> {
        let input = Input::DrainToSync {
            generation: self.generation,
            protection: Some(Protection(self.protection)),
        };
        let drained = self.group.request_blocking(input);
        drained.map(drop).map_err(|e| e.kind())
    }
}

fn takeover(group: &Group, standby: &str) -> Result<(Generation, Epoch), ErrorKind> {
    let standby = standby.to_owned();
    let answer = group.request_blocking(Input::Takeover { standby });
    let answer = answer.map_err(|e| e.kind())?;
    Ok((answer.generation, answer.committed))
}

#[test]
fn it_is_refused_as_long_as_somebody_else_or_nobody_holds_the_memory() {
    let site = Site::new(GroupMode::Sync, &["root"]);
    let group = site.open();
    let mut source = Source::attach(&group);
    source.protect("b");
    source.disk.write(0, 1);
    source.drain().unwrap();
    assert_eq!(takeover(&group, "b"), Err(ErrorKind::MemoryStale));
    source.disk.write(0, 2);
    assert_eq!(site.image_block(0, 0), vec![2; BLOCK], "in sync mode");

    source.protect("c");
    source.disk.write(0, 3);
    assert_eq!(takeover(&group, "b"), Err(ErrorKind::OtherHolder));
    // Nothing has changed for the source: it is not cut, and its epochs go on.
    assert_eq!(group.status().generation, source.generation);
    assert!(!source.disk.is_cut());
    let committed = source.checkpoint("c");
    source.disk.write(0, 4);
    assert_eq!(source.disk.read(0), 4);
    assert_eq!(takeover(&group, "c").unwrap().1, committed);
    assert_eq!(attach(&group, "root", Some("c")).read(0), 3);
}

/// The failover is needless, but it is one: E is what the standby has acknowledged last, and nobody else may write.
#[test]
fn if_the_same_standby_protects_anew_it_goes_on_from_what_that_holds_now() {
    let site = Site::new(GroupMode::Sync, &["root"]);
    let group = site.open();
    let mut source = Source::attach(&group);
    source.protect("b");
    source.disk.write(0, 1);
    source.drain().unwrap();
    // One copy of the request comes in time, the other one below.
    assert_eq!(takeover(&group, "b"), Err(ErrorKind::MemoryStale));
    source.disk.write(0, 2);
    source.disk.write(1, 2);

    source.protect("b");
    let parked = attach(&group, "root", Some("b"));
    source.disk.write(0, 3);
    let committed = source.checkpoint("b");
    source.disk.write(0, 4);
    let sealed = source.seal().unwrap();
    source.disk.write(1, 4);

    let (generation, epoch) = takeover(&group, "b").unwrap();
    assert_eq!(epoch, committed);
    assert!(generation > source.generation);
    assert!(source.disk.is_cut());
    let late = source
        .disk
        .export
        .write(0, Bytes::from(vec![5; BLOCK]), false);
    assert!(late.is_err());
    let refused = commit(&group, source.generation, sealed, "b").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Fenced);
    assert_eq!(source.seal(), Err(ErrorKind::Fenced));
    assert_eq!(source.drain(), Err(ErrorKind::Fenced));

    // When its source yields, the standby asks by itself.
    assert_eq!(takeover(&group, "b"), Ok((generation, committed)));
    let status = group.status();
    assert_eq!(status.owner.as_deref(), Some("b"));
    assert_eq!((parked.read(0), parked.read(1)), (3, 2));
    parked.write(1, 6);
    assert_eq!((parked.read(0), parked.read(1)), (3, 6));
    assert_eq!(site.image_block(0, 0), vec![3; BLOCK]);
}
