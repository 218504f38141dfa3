//! The gateway's process dies, or is stopped for an upgrade, and starts again under its clients: a protected VM, and fio behind a client that
//! reconnects. Nothing that was answered is missing, nobody sees an error, nothing is rolled back, and nobody is fenced.
//!
//! `EPOCHGATE_TEST_KILLS=200` makes as many restarts in each test as that.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use epochgate_tests::command::run_well;
use epochgate_tests::disk::{Disk, Mode};
use epochgate_tests::process::Process;
use epochgate_tests::random::Random;
use epochgate_tests::site::{Options, Site, wait_for_socket};
use rustix::process::Signal;

fn kills(usually: u64) -> u64 {
    match std::env::var("EPOCHGATE_TEST_KILLS") {
        Ok(text) => text.parse().expect("EPOCHGATE_TEST_KILLS is a number"),
        Err(_) => usually,
    }
}

fn held_files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().ends_with(".held"))
        .count()
}

/// How often the source said so.
fn count(site: &mut Site, event: &str) -> usize {
    let events = site.source().events();
    events.iter().filter(|said| said["event"] == event).count()
}

#[test]
fn a_protected_vm_does_not_notice_restarts_of_its_gateway() {
    let mut random = Random::new("a_protected_vm_does_not_notice_restarts_of_its_gateway");
    let mut site = Site::new(&Options::default());
    let before = site.start_protected(&[]);
    let generation = site.group()["generation"].clone();
    for kill in 0..kills(6) {
        std::thread::sleep(Duration::from_millis(random.within(0..300)));
        if kill % 3 == 2 {
            // An upgrade: it stops in order, and leaves what it holds to the next.
            site.gateway().stop();
        } else {
            site.gateway().kill();
        }
        std::thread::sleep(Duration::from_millis(random.within(0..200)));
        site.start_gateway(&[]);
        let last = site.source().last_epoch("committed").unwrap();
        site.source()
            .event_where("a commit after the restart", |event| {
                event["event"] == "committed" && event["epoch"].as_u64() > Some(last)
            });
        site.serial("source").goes_on();
    }
    for never in ["standby_lost", "unprotected", "fenced", "commit_failed"] {
        assert_eq!(count(&mut site, never), 0, "{never}");
    }
    assert_eq!(count(&mut site, "protected"), 1);
    assert_eq!(site.group()["generation"], generation);
    site.serial("source").must_be_content(&before);

    // And it is protected still: memory and disks of the last epoch belong together.
    let committed = site.kill_source();
    assert!(site.resumed() >= committed);
    site.serial("standby").must_be_content(&before);
}

/// qemu-nbd in between reconnects and asks again; fio itself would not.
#[test]
fn fio_behind_a_client_that_reconnects_loses_no_write_and_sees_no_error() {
    let random =
        Random::new("fio_behind_a_client_that_reconnects_loses_no_write_and_sees_no_error");
    let mut seeds = random.fork(1);
    let mut disk = Disk::start(Mode::Async, 32 << 20);
    let middle = disk.path("middle.sock");
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=,reconnect-delay=60",
        disk.file("nbd.sock")
    );
    let mut command = Command::new("qemu-nbd");
    command
        .args(["--image-opts", &image, "--socket"])
        .arg(&middle);
    command.args([
        "--persistent",
        "--shared=4",
        "--cache=none",
        "--aio=threads",
    ]);
    let mut relay = Process::start("qemu-nbd", disk.path("").as_path(), command);
    wait_for_socket(&middle, &mut relay);
    let uri = format!("--uri=nbd+unix:///?socket={}", middle.display());
    let aux = format!("--aux-path={}", disk.path("").display());
    let fio = |seed: u64, options: &[&str]| {
        let seed = format!("--randseed={seed}");
        let common = [
            "--ioengine=nbd",
            &uri,
            &aux,
            &seed,
            "--name=verify",
            "--numjobs=2",
            "--size=16m",
            "--offset_increment=16m",
            "--bsrange=512-64k",
            "--blockalign=512",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--rw=randwrite",
            "--fsync=256",
            "--output-format=terse",
        ];
        run_well("fio", common.iter().chain(options));
    };
    let done = AtomicBool::new(false);
    let wanted = kills(6);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let seed = seeds.within(1..1 << 30);
                fio(seed, &["--do_verify=1"]);
                rounds += 1;
            }
            rounds
        });
        let mut random = random.fork(2);
        for _ in 0..wanted {
            std::thread::sleep(Duration::from_millis(random.within(50..500)));
            disk.kill_process();
            disk.start_again();
            // It comes back after a second or more; whatever waits then is asked again.
            std::thread::sleep(Duration::from_millis(random.within(1_000..1_500)));
            assert!(!writer.is_finished(), "fio failed");
        }
        done.store(true, Ordering::Relaxed);
        let rounds: u32 = writer.join().expect("fio found every block as it wrote it");
        println!("{wanted} kills, {rounds} rounds of fio with verification");
    });
    let log = relay.log();
    assert!(!log.contains("error"), "{log}");
    relay.signal(Signal::TERM);
    relay.wait();
    disk.stop();
    assert_eq!(
        held_files(&disk.path("")),
        0,
        "an orderly stop leaves nothing behind"
    );
}
