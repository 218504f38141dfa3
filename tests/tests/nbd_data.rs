//! The data that the clients people use write and read, in every mode, with epochs cut and committed all the while: what comes
//! back is what was written, at once, after an orderly stop, and after a crash.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use epochgate_tests::command::{run, run_well};
use epochgate_tests::disk::{Disk, Mode};
use epochgate_tests::random::Random;
use serde_json::Value;

const BYTES: u64 = 32 << 20;

/// Content with long runs of data and of zeros, so that clients take other requests than writes as well.
fn content(random: &mut Random) -> Vec<u8> {
    let mut content = Vec::new();
    while (content.len() as u64) < BYTES {
        let len = usize::try_from(random.within(1..2 << 20)).unwrap();
        if random.one_in(3) {
            content.resize(content.len() + len, 0);
        } else {
            content.extend(random.bytes(len));
        }
    }
    content.truncate(usize::try_from(BYTES).unwrap());
    content
}

fn qemu_img<const N: usize>(args: [&str; N]) -> String {
    run_well("qemu-img", args)
}

fn assert_same(one: &Path, other: &Path) {
    run_well("cmp", [one, other]);
}

fn converts(mode: Mode) {
    let mut random = Random::new("converts");
    let mut disk = Disk::start(mode, BYTES);
    let (raw, qcow2) = (disk.file("in.raw"), disk.file("in.qcow2"));
    for (format, source) in [("raw", &raw), ("qcow2", &qcow2)] {
        std::fs::write(&raw, content(&mut random)).unwrap();
        qemu_img(["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
        let url = disk.url();
        // -W: writes out of order, as many at once as it can.
        qemu_img([
            "convert", "-n", "-W", "-m", "16", "-f", format, "-O", "raw", source, &url,
        ]);
        qemu_img(["compare", "-f", format, "-F", "raw", source, &url]);
        let back = disk.file("back");
        for back_format in ["raw", "qcow2"] {
            qemu_img(["convert", "-f", "raw", "-O", back_format, &url, &back]);
            qemu_img(["compare", "-f", "raw", "-F", back_format, &raw, &back]);
        }
    }
    disk.stop();
    assert_same(raw.as_ref(), &disk.image());
}

#[test]
fn qemu_img_converts_in_sync_mode() {
    converts(Mode::Sync);
}

#[test]
fn qemu_img_converts_in_async_mode() {
    converts(Mode::Async);
}

#[test]
fn qemu_img_converts_while_a_source_commits() {
    converts(Mode::Source);
}

/// The places where its clusters lie make small writes all over the export.
fn holds_a_qcow2(mode: Mode) {
    let mut random = Random::new("holds_a_qcow2");
    let mut disk = Disk::start(mode, BYTES);
    let (raw, url) = (disk.file("in.raw"), disk.url());
    let mut data = content(&mut random);
    // Its own tables need room beside the data.
    data.truncate(24 << 20);
    std::fs::write(&raw, data).unwrap();
    qemu_img(["create", "-q", "-f", "qcow2", &url, "24M"]);
    qemu_img(["convert", "-n", "-f", "raw", "-O", "qcow2", &raw, &url]);
    qemu_img(["check", "-f", "qcow2", &url]);
    qemu_img(["compare", "-f", "raw", "-F", "qcow2", &raw, &url]);
    // Discards in the midst of it give clusters back, internal snapshots make references to them.
    qemu_img(["snapshot", "-c", "first", &url]);
    let change = [
        "-d",
        "unmap",
        "-f",
        "qcow2",
        "-c",
        "discard 4M 4M",
        "-c",
        "write -P 0x5c 10M 3M",
        &url,
    ];
    let said = run_well("qemu-io", change);
    assert!(!said.contains("failed"), "{said}");
    qemu_img(["check", "-f", "qcow2", &url]);
    qemu_img(["snapshot", "-a", "first", &url]);
    qemu_img(["compare", "-f", "raw", "-F", "qcow2", &raw, &url]);
    disk.stop();
    let image = disk.file("disk.img");
    qemu_img(["check", "-f", "qcow2", &image]);
    qemu_img(["compare", "-f", "raw", "-F", "qcow2", &raw, &image]);
}

#[test]
fn a_qcow2_inside_an_export_stays_whole_in_sync_mode() {
    holds_a_qcow2(Mode::Sync);
}

#[test]
fn a_qcow2_inside_an_export_stays_whole_in_async_mode() {
    holds_a_qcow2(Mode::Async);
}

#[test]
fn a_qcow2_inside_an_export_stays_whole_while_a_source_commits() {
    holds_a_qcow2(Mode::Source);
}

/// What `qemu-img map` says to be zero must read as zeros, also where it is held in an epoch: a client does not read it.
#[test]
fn what_qemu_img_maps_as_zero_is_zero() {
    let mut random = Random::new("what_qemu_img_maps_as_zero_is_zero");
    for mode in Mode::ALL {
        let mut disk = Disk::start(mode, BYTES);
        let raw = disk.file("in.raw");
        let data = content(&mut random);
        std::fs::write(&raw, &data).unwrap();
        let url = disk.url();
        qemu_img(["convert", "-n", "-f", "raw", "-O", "raw", &raw, &url]);
        for when in ["while it is held", "after a stop"] {
            let url = disk.url();
            let map = qemu_img(["map", "-f", "raw", "--output=json", &url]);
            let map: Vec<Value> = serde_json::from_str(&map).unwrap();
            let mut end = 0;
            for range in &map {
                let number = |key: &str| usize::try_from(range[key].as_u64().unwrap()).unwrap();
                let (start, length) = (number("start"), number("length"));
                assert_eq!(start, end, "{mode:?}, {when}: a gap before {range}");
                end = start + length;
                let zeros = data[start..end].iter().all(|byte| *byte == 0);
                assert!(
                    zeros || range["zero"] == false,
                    "{mode:?}, {when}: {range} has data"
                );
            }
            assert_eq!(end as u64, BYTES, "{mode:?}, {when}: the map is too short");
            disk.stop();
            disk.start_again();
        }
    }
}

fn nbdcopies(mode: Mode) {
    let mut random = Random::new("nbdcopies");
    let mut disk = Disk::start(mode, BYTES);
    let (input, output) = (disk.path("in"), disk.path("out"));
    let four = ["--connections=4", "--requests=32", "--flush"];
    for _ in 0..2 {
        std::fs::write(&input, content(&mut random)).unwrap();
        let url = disk.url();
        let (from, to) = (disk.file("in"), disk.file("out"));
        run_well("nbdcopy", four.iter().chain([&&*from, &&*url]));
        let _ = std::fs::remove_file(&output);
        run_well("nbdcopy", four.iter().chain([&&*url, &&*to]));
        assert_same(&input, &output);
    }
    disk.stop();
    assert_same(&input, &disk.image());
}

#[test]
fn nbdcopy_takes_four_connections_both_ways_in_sync_mode() {
    nbdcopies(Mode::Sync);
}

#[test]
fn nbdcopy_takes_four_connections_both_ways_in_async_mode() {
    nbdcopies(Mode::Async);
}

#[test]
fn nbdcopy_takes_four_connections_both_ways_while_a_source_commits() {
    nbdcopies(Mode::Source);
}

/// Four jobs with a connection and a quarter of the disk each.
fn fio(disk: &Disk, seed: u64, options: &[&str]) {
    let uri = format!("--uri={}", disk.url());
    let aux = format!("--aux-path={}", disk.path("").display());
    let seed = format!("--randseed={seed}");
    let common = [
        "--ioengine=nbd",
        &uri,
        // It leaves files in its working directory.
        &aux,
        &seed,
        "--name=verify",
        "--numjobs=4",
        "--size=8m",
        "--offset_increment=8m",
        "--bsrange=512-64k",
        "--blockalign=512",
        "--iodepth=32",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--rw=randwrite",
        "--fsync=256",
        "--end_fsync=1",
        "--output-format=terse",
    ];
    run_well("fio", common.iter().chain(options));
}

fn fio_verifies(mode: Mode) {
    let mut random = Random::new("fio_verifies");
    let mut disk = Disk::start(mode, BYTES);
    let seed = random.within(1..1 << 30);
    fio(&disk, seed, &["--do_verify=1"]);
    // Verified while it is written, too.
    let seed = random.within(1..1 << 30);
    fio(&disk, seed, &["--do_verify=1", "--verify_backlog=64"]);
    disk.stop();
    disk.start_again();
    fio(&disk, seed, &["--verify_only"]);
    disk.stop();
}

#[test]
fn fio_verifies_over_four_connections_in_sync_mode() {
    fio_verifies(Mode::Sync);
}

#[test]
fn fio_verifies_over_four_connections_in_async_mode() {
    fio_verifies(Mode::Async);
}

#[test]
fn fio_verifies_over_four_connections_while_a_source_commits() {
    fio_verifies(Mode::Source);
}

/// Nothing was stopped in order: what a client flushed is there all the same.
#[test]
fn what_a_client_flushed_survives_a_killed_gateway() {
    let mut random = Random::new("what_a_client_flushed_survives_a_killed_gateway");
    for mode in [Mode::Sync, Mode::Async] {
        let mut disk = Disk::start(mode, BYTES);
        let input = disk.file("in");
        for _ in 0..4 {
            std::fs::write(&input, content(&mut random)).unwrap();
            let args = ["--connections=4", "--flush", &input, &disk.url()];
            run_well("nbdcopy", args);
            // This one is cut down in the midst of its writes, to a place that the next round writes again.
            std::thread::scope(|scope| {
                let url = disk.url();
                let writes = scope.spawn(move || {
                    let commands = ["-c", "write -P 0x77 0 1M"].repeat(100);
                    let fixed = ["-t", "unsafe", "-f", "raw"];
                    run("qemu-io", fixed.into_iter().chain(commands).chain([&*url]))
                });
                std::thread::sleep(std::time::Duration::from_millis(random.within(0..100)));
                disk.kill();
                writes.join().unwrap();
            });
            disk.start_again();
            let after = disk.file("after");
            run_well("nbdcopy", [&disk.url(), &after]);
            // All but the first MiB, which has the old content or some of the new.
            let skip = "--ignore-initial=1048576";
            run_well("cmp", [skip, &input, &after]);
        }
    }
}
