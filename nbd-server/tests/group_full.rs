//! A log and images on file systems that really are full: tiny ones, mounted for one thread and its children only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod group_common;

use std::ffi::CString;
use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use group_common::{BLOCK, Site, attach, attach_source, checkpoint, commit, until};
use nbd_server::control::api::ErrorKind;
use nbd_server::export::Export;
use nbd_server::group::GroupMode;
use nbd_server::group::barriers::Input;

/// Mounts a tmpfs of `mib` MiB at `at`, seen by this thread and the threads that it starts. It goes when they end.
fn mount_tiny(at: &Path, mib: u32) {
    std::fs::create_dir_all(at).unwrap();
    let path = CString::new(at.to_str().unwrap()).unwrap();
    let size = CString::new(format!("size={mib}m")).unwrap();
    let none = std::ptr::null();
    // SAFETY: the strings end with a zero and live until the calls return; the calls change nothing in this process but
    // the mounts that this thread sees.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "this test needs root");
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(
            libc::mount(none, c"/".as_ptr(), none, flags, none.cast()),
            0
        );
        let tmpfs = c"tmpfs".as_ptr();
        assert_eq!(
            libc::mount(tmpfs, path.as_ptr(), tmpfs, 0, size.as_ptr().cast()),
            0
        );
    }
}

/// Runs in a thread of its own, whose mounts nobody else sees.
fn alone(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn an_epoch_that_does_not_fit_into_the_log_waits_sealed_until_there_is_room() {
    alone(|| {
        let site = Site::new(GroupMode::Sync, &["root"]);
        mount_tiny(&site.config.log, 2);
        let group = site.open();
        let generation = attach_source(&group, "a");
        checkpoint(&group, generation, "b");
        let disk = attach(&group, "root", Some("a"));
        let ballast = site.config.log.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[1; BLOCK]).is_ok() {}
        for block in 0..64 {
            disk.write(block, 7);
        }
        let sealed = group.seal(generation).unwrap();
        let error = commit(&group, generation, sealed.epoch, "b").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LogFull, "{error}");
        assert!(
            error
                .to_string()
                .contains(site.config.log.to_str().unwrap()),
            "{error}"
        );
        let status = group.status();
        assert!(
            status.last_error.is_some() && status.sealed == 1,
            "{status:?}"
        );
        disk.write(64, 8);
        assert_eq!((disk.read(0), disk.read(64)), (7, 8), "the guest goes on");
        std::fs::remove_file(&ballast).unwrap();
        drop(file);
        assert_eq!(
            commit(&group, generation, sealed.epoch, "b").unwrap(),
            sealed.epoch
        );
        assert_eq!(group.status().last_error, None);
        until(|| group.status().applied == sealed.epoch);
        assert_eq!(site.image_block(0, 0), vec![7; BLOCK]);
    });
}

/// Held writes for which there is no shared memory lie in ordinary memory: the guest goes on, and a next gateway knows that it can't.
#[test]
fn without_shared_memory_a_group_goes_on_and_a_restart_fences_until_what_lay_elsewhere_is_in_the_image()
 {
    for committed in [false, true] {
        alone(move || {
            let mut site = Site::new(GroupMode::Sync, &["root"]);
            site.config.epoch_memory = site.dir.path().join("tiny");
            mount_tiny(&site.config.epoch_memory, 1);
            let group = site.open();
            let generation = attach_source(&group, "a");
            group.park("b").unwrap();
            checkpoint(&group, generation, "b");
            let disk = attach(&group, "root", Some("a"));
            for block in 0..250 {
                disk.write(block, 7);
            }
            assert!((0..250).all(|block| disk.read(block) == 7));
            if committed {
                let epoch = checkpoint(&group, generation, "b").epoch;
                until(|| group.status().applied == epoch);
                disk.write(0, 8);
            }
            drop((disk, group));
            let group = site.open();
            let expected = if committed {
                generation
            } else {
                generation.next()
            };
            assert_eq!(group.status().generation, expected);
            if committed {
                let disk = attach(&group, "root", Some("a"));
                assert_eq!((disk.read(0), disk.read(249)), (8, 7));
            }
        });
    }
}

#[test]
fn an_image_without_space_is_tried_again_and_nothing_is_lost() {
    alone(|| {
        let mut site = Site::new(GroupMode::Async, &["root"]);
        let tiny = site.dir.path().join("tiny");
        mount_tiny(&tiny, 1);
        site.config.disks[0].image = tiny.join("root.img");
        File::create(site.image(0))
            .unwrap()
            .set_len(group_common::SIZE)
            .unwrap();
        let group = site.open();
        let ballast = tiny.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[1; BLOCK]).is_ok() {}
        let disk = attach(&group, "root", None);
        disk.write(5, 5);
        disk.export.flush().unwrap();
        until(|| group.status().last_error.is_some());
        let status = group.status();
        assert!(
            status.last_error.as_ref().unwrap().contains("trying again"),
            "{status:?}"
        );
        assert!(status.committed > status.applied);
        disk.export
            .write(6 * BLOCK as u64, Bytes::from(vec![6; BLOCK]), true)
            .unwrap();
        assert_eq!(
            (disk.read(5), disk.read(6)),
            (5, 6),
            "read from memory until it is in the image"
        );
        std::fs::remove_file(&ballast).unwrap();
        drop(file);
        until(|| group.status().last_error.is_none() && group.status().backlog == 0);
        assert_eq!(
            (site.image_block(0, 5), site.image_block(0, 6)),
            (vec![5; BLOCK], vec![6; BLOCK])
        );
    });
}

#[test]
fn a_drain_that_finds_the_log_full_goes_on_when_there_is_room() {
    alone(|| {
        let site = Site::new(GroupMode::Sync, &["root"]);
        mount_tiny(&site.config.log, 2);
        let group = site.open();
        let generation = attach_source(&group, "a");
        checkpoint(&group, generation, "b");
        let disk = attach(&group, "root", Some("a"));
        let ballast = site.config.log.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[1; BLOCK]).is_ok() {}
        for block in 0..64 {
            disk.write(block, 9);
        }
        let error = group
            .request_blocking(Input::DrainToSync {
                generation,
                protection: None,
            })
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LogFull, "{error}");
        std::fs::remove_file(&ballast).unwrap();
        drop(file);
        group
            .request_blocking(Input::DrainToSync {
                generation,
                protection: None,
            })
            .unwrap();
        assert_eq!(site.image_block(0, 63), vec![9; BLOCK]);
        disk.write(0, 1);
        assert_eq!(site.image_block(0, 0), vec![1; BLOCK]);
    });
}
