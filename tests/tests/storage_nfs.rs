//! Images and logs on a NAS without a mount: nfs-ganesha, which is frozen, killed, loses its export and loses power under load. Nothing that
//! was answered is lost, no epoch is called committed that is not, and people are told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use epochgate_tests::below::{Below, Places, configure};
use epochgate_tests::command::run_for;
use epochgate_tests::ledger::BYTES;
use epochgate_tests::nas::Nas;
use epochgate_tests::nbd::{FLUSH, READ, Request, TRIM, ZEROES};
use epochgate_tests::paths;
use epochgate_tests::random::Random;
use epochgate_tests::site::{make_image, tempdir, vm_lock};

fn nap(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

fn places(nas: &Nas, mode: &'static str) -> Places {
    make_image(&nas.file("disk.raw"), BYTES);
    Places {
        image: nas.url("disk.raw"),
        log: nas.url("logs/g"),
        mode,
    }
}

/// Everything that can happen to a NAS, one after the other, under load.
fn weathers(mode: &'static str) {
    let dir = tempdir();
    let mut nas = Nas::start(dir.path(), 256);
    let places = places(&nas, mode);
    let mut below = Below::start(dir.path(), &places, &|program| nas.host(program));
    let random = Random::new("weathers");

    // It stalls.
    below.under_load(&random.fork(1), |below| {
        nap(300);
        nas.freeze();
        below.wait_for_trouble(&["nfs://", "does not answer"]);
        let committed = below.status()["committed"].clone();
        nap(1500);
        assert_eq!(
            below.status()["committed"],
            committed,
            "epochs without a log"
        );
        nas.thaw();
        below.wait_for_trouble(&[]);
    });

    // Its server dies, twice.
    for round in 2..4 {
        below.under_load(&random.fork(round), |below| {
            nap(200);
            nas.kill();
            below.wait_for_trouble(&["no connection"]);
            nas.start_again();
            below.wait_for_trouble(&[]);
        });
    }

    // It forgets what it exports.
    below.under_load(&random.fork(4), |below| {
        nap(200);
        nas.kill();
        nas.start_without_export();
        nap(1500);
        assert!(below.status()["last_error"].is_string());
        nas.kill();
        nas.start_again();
        below.wait_for_trouble(&[]);
    });

    // Its power goes: what it had not synced is gone.
    for round in 5..9 {
        below.under_load(&random.fork(round), |below| {
            nap(150 + round * 37);
            nas.lose_power();
            nas.start_again();
            below.wait_for_trouble(&[]);
        });
    }
    if mode == "sync" {
        assert!(
            below.log().contains("may have restarted before a flush"),
            "no power loss hit an image with writes that were not flushed:\n{}",
            below.log()
        );
    }

    below.stop();
    assert!(
        !nas.file("disk.raw.epochgate-lock").exists(),
        "the lock stays"
    );
    below.assert_image(&std::fs::read(nas.file("disk.raw")).unwrap());
}

#[test]
fn a_group_in_async_mode_weathers_what_happens_to_its_nas() {
    weathers("async");
}

#[test]
fn a_group_in_sync_mode_weathers_what_happens_to_its_nas() {
    weathers("sync");
}

/// The gateway and the NAS fail together; what was flushed is there. The locks of the dead gateway are in nobody's way.
#[test]
fn what_was_flushed_survives_the_gateway_and_the_nas() {
    for mode in ["async", "sync"] {
        let dir = tempdir();
        let mut nas = Nas::start(dir.path(), 256);
        let places = places(&nas, mode);
        let on = format!(
            "{}",
            nas.host(Path::new("true"))
                .get_args()
                .next()
                .unwrap()
                .display()
        );
        let host = move |program: &Path| {
            let mut command = Command::new("nsenter");
            command.arg(&on).arg(program);
            command
        };
        let mut below = Below::start(dir.path(), &places, &host);
        let random = Random::new("what_was_flushed_survives_the_gateway_and_the_nas");
        for round in 0..3 {
            below.until_crash(&random.fork(round), &host, |_| {
                nap(200 + 61 * round);
                nas.lose_power();
                nas.start_again();
                nap(100 + 300 * round);
            });
        }
        below.stop();
        below.assert_image(&std::fs::read(nas.file("disk.raw")).unwrap());
    }
}

fn refused(nas: &Nas, dir: &Path) -> String {
    let ended = nas
        .host(paths::epochgate())
        .args(["gateway", "--config"])
        .arg(dir.join("below.toml"))
        .output()
        .unwrap();
    assert!(!ended.status.success());
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[test]
fn two_gateways_do_not_write_the_same() {
    let dir = tempdir();
    let nas = Nas::start(dir.path(), 256);
    let on = |program: &Path| nas.host(program);
    let places = places(&nas, "sync");
    let below = Below::start(dir.path(), &places, &on);

    // Another one with a log of its own, and one with an image of its own.
    let other = tempdir();
    let others = Places {
        log: other.path().join("log").display().to_string(),
        ..places.clone()
    };
    configure(other.path(), &others);
    let said = refused(&nas, other.path());
    assert!(said.contains("in use by another gateway"), "{said}");
    make_image(&nas.file("other.raw"), BYTES);
    let others = Places {
        image: nas.url("other.raw"),
        ..places.clone()
    };
    configure(other.path(), &others);
    let said = refused(&nas, other.path());
    assert!(said.contains("in use"), "{said}");

    // Somebody breaks the lock of one that runs: it writes nothing more.
    let lock = nas.file("disk.raw.epochgate-lock");
    let text = std::fs::read_to_string(&lock).unwrap();
    let foreign: String = text
        .lines()
        .map(|line| match line.split_once('=') {
            Some(("id", _)) => "id=another-id\n".to_owned(),
            Some(("host", _)) => "host=elsewhere\n".to_owned(),
            Some(("boot", _)) => "boot=another\n".to_owned(),
            _ => format!("{line}\n"),
        })
        .collect();
    std::fs::write(&lock, &foreign).unwrap();
    below.wait_for_trouble(&["was broken by", "host elsewhere"]);
    let write = Request::write(0, vec![1; 4096]);
    assert_ne!(below.client().ask(&write).unwrap().error, 0);
    drop(below);
    assert_eq!(
        std::fs::read_to_string(&lock).unwrap(),
        foreign,
        "it took down another's lock"
    );

    // The lock of a host that is not this one: only on request, and only that one.
    configure(dir.path(), &places);
    let said = refused(&nas, dir.path());
    assert!(said.contains("break_lock=another-id"), "{said}");
    let image = |id: &str| Places {
        image: format!("{}?break_lock={id}", places.image),
        ..places.clone()
    };
    configure(dir.path(), &image("some-other-id"));
    refused(&nas, dir.path());
    let mut below = Below::start(dir.path(), &image("another-id"), &on);
    assert_eq!(below.client().ask(&write).unwrap().error, 0);
    below.stop();
}

#[test]
fn what_can_not_be_opened_is_said_clearly() {
    let dir = tempdir();
    let nas = Nas::start(dir.path(), 64);
    let good = places(&nas, "sync");
    let refused_with = |places: &Places| {
        configure(dir.path(), places);
        refused(&nas, dir.path())
    };
    let image = |image: &str| Places {
        image: image.to_owned(),
        ..good.clone()
    };
    std::fs::create_dir(nas.file("folder")).unwrap();
    for (url, word) in [
        (nas.url("missing.raw"), "No such file"),
        (nas.url("folder"), "no regular file"),
        (
            "nfs://10.79.0.2/elsewhere/disk.raw".to_owned(),
            "exported to this host",
        ),
        ("nfs://10.79.0.2/x?patience=3".to_owned(), "patience_ms"),
        ("nbd://10.79.0.2:2/x".to_owned(), "refused"),
        ("smb://10.79.0.2/x".to_owned(), "not known"),
    ] {
        let said = refused_with(&image(&url));
        assert!(said.contains(word), "{url}: {said}");
    }
    let log = Places {
        log: "nbd://10.79.0.2/x".to_owned(),
        ..good.clone()
    };
    assert!(refused_with(&log).contains("a log is a directory"));
}

/// NFS version 3 can't make holes, so zeros are written only where there are none; trims do nothing.
#[test]
fn zeros_keep_an_image_sparse() {
    let dir = tempdir();
    let nas = Nas::start(dir.path(), 64);
    let places = places(&nas, "sync");
    let mut below = Below::start(dir.path(), &places, &|program| nas.host(program));
    let mut client = below.client();
    let mut ask = |request: Request| {
        let answer = client.ask(&request).unwrap();
        assert_eq!(answer.error, 0, "{request:?}");
        answer.data
    };
    let all = u32::try_from(BYTES).unwrap();
    ask(Request::write(70_001, vec![3; 5000]));
    ask(Request::new(ZEROES, 0, all));
    assert!(
        ask(Request::new(READ, 0, all))
            .iter()
            .all(|byte| *byte == 0)
    );
    ask(Request::write(70_001, vec![4; 5000]));
    ask(Request::new(ZEROES, 72_000, 100));
    ask(Request::new(TRIM, 512 << 10, 4096));
    ask(Request::new(FLUSH, 0, 0));
    below.stop();
    let image = std::fs::read(nas.file("disk.raw")).unwrap();
    let mut expected = vec![0; image.len()];
    expected[70_001..75_001].fill(4);
    expected[72_000..72_100].fill(0);
    assert!(image == expected);
    let blocks = std::fs::metadata(nas.file("disk.raw")).unwrap().blocks();
    assert!(blocks * 512 < BYTES / 2, "{blocks} blocks of {BYTES} bytes");
}

#[test]
fn urls_outside_of_groups_are_refused_with_the_way_that_works() {
    let ended = run_for(
        60,
        paths::epochgate(),
        [
            "serve",
            "nfs://10.79.0.2/disk.raw",
            "--unix",
            "not-used.sock",
        ],
    );
    ended.with(2).says(&["served in groups only", "[[group]]"]);
}

/// With a limit to its patience I/O fails instead of waiting for ever.
#[test]
fn patience_can_have_an_end() {
    let dir = tempdir();
    let nas = Nas::start(dir.path(), 256);
    let mut places = places(&nas, "sync");
    places.image.push_str("?patience_ms=1000");
    places.log = dir.path().join("log").display().to_string();
    let below = Below::start(dir.path(), &places, &|program| nas.host(program));
    let mut client = below.client();
    let write = Request::write(0, vec![7; 4096]);
    assert_eq!(client.ask(&write).unwrap().error, 0);
    nas.freeze();
    assert_ne!(client.ask(&write).unwrap().error, 0);
    nas.thaw();
    below.wait_for_trouble(&[]);
    assert_eq!(client.ask(&write).unwrap().error, 0);
}

/// Failovers of a VM whose images and log lie on a NAS, which stalls and restarts before each of them.
#[test]
fn a_vm_on_a_nas_fails_over() {
    let _lock = vm_lock();
    let guest = paths::guest().display().to_string();
    let qemu = paths::qemu();
    let mut args = vec![
        "bench",
        "failover",
        "--json",
        "--runs",
        "2",
        "--storage",
        "nfs",
    ];
    args.extend(["--nas-stall", "20", "--guest", &guest, "--qemu", &qemu]);
    let ended = run_for(300, paths::epochgate(), args);
    let summary: serde_json::Value = serde_json::from_str(&ended.out)
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", ended.out, ended.err));
    assert_eq!(summary["good"], 2, "{summary:#}");
    assert_eq!(summary["mismatches"], 0, "{summary:#}");
    assert_eq!(summary["committed_epochs_lost"], 0, "{summary:#}");
}
