//! The server against the clients that people use: libnbd's tools, QEMU's tools, fio, and the `nbd` crate.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbd_common;

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nbd_common::{Served, pattern, raw_image, run, run_well};
use nbd_server::limits::Limits;
use nbd_server::server::BoundAddress;

const SIZE: u64 = 64 << 20;

struct Disk {
    served: Served,
    image: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn disk(read_only: bool) -> Disk {
    let dir = tempfile::tempdir().unwrap();
    let (image, export) = raw_image(dir.path(), SIZE, read_only);
    let served = Served::new(vec![("disk", export)], Limits::default());
    Disk {
        served,
        image,
        _dir: dir,
    }
}

/// A unix socket, TCP over IPv4, TCP over IPv6.
fn transports(disk: &Disk) -> [BoundAddress; 3] {
    let served = &disk.served;
    [served.unix.clone(), served.tcp(), served.tcp6()]
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let disk = disk(false);
    for address in transports(&disk) {
        let text = run_well("nbdinfo", &["--json", &address.uri("disk")]);
        let info: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        assert_eq!(export["export-name"], "disk");
        assert_eq!(export["export-size"], SIZE);
        for able in [
            "can_flush",
            "can_fua",
            "can_trim",
            "can_zero",
            "can_fast_zero",
            "can_df",
            "can_multi_conn",
        ] {
            assert_eq!(export[able], true, "{able}");
        }
        for not in ["is_read_only", "is_rotational"] {
            assert_eq!(export[not], false, "{not}");
        }
        assert_eq!(export["block_size_minimum"], 1);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 << 20);
        assert_eq!(export["description"], "raw image, sync mode");
    }
    let list = run_well("nbdinfo", &["--list", "--json", &disk.served.unix.uri("")]);
    assert!(list.contains("\"disk\""), "{list}");
    let unknown = run("qemu-img", &["info", &disk.served.unix.uri("none")]);
    assert!(!unknown.status.success());
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("there is no export none"), "{said}");
}

#[test]
fn nbdcopy_brings_back_what_it_took() {
    let disk = disk(false);
    let (input, output) = (disk.served.path("in"), disk.served.path("out"));
    for (seed, address) in transports(&disk).iter().enumerate() {
        let mut content = pattern(usize::try_from(SIZE).unwrap(), 77 + seed as u64);
        content[10 << 20..20 << 20].fill(0);
        fs::write(&input, &content).unwrap();
        let uri = address.uri("disk");
        let arguments = ["--connections=4", "--requests=32", "--flush"];
        run_well(
            "nbdcopy",
            &[&arguments[..], &[input.to_str().unwrap(), &uri]].concat(),
        );
        assert!(
            fs::read(&disk.image).unwrap() == content,
            "the image differs"
        );
        let _ = fs::remove_file(&output);
        run_well(
            "nbdcopy",
            &[&arguments[..], &[&uri, output.to_str().unwrap()]].concat(),
        );
        assert!(
            fs::read(&output).unwrap() == content,
            "what was read back differs"
        );
    }
}

#[test]
fn qemu_img_converts_and_compares() {
    let disk = disk(false);
    let source = disk.served.path("source");
    let mut content = pattern(usize::try_from(SIZE).unwrap(), 5);
    content[1 << 20..40 << 20].fill(0);
    fs::write(&source, &content).unwrap();
    let source = source.to_str().unwrap();
    for address in transports(&disk) {
        let uri = address.uri("disk");
        run_well(
            "qemu-img",
            &[
                "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", source, &uri,
            ],
        );
        assert!(fs::read(&disk.image).unwrap() == content);
        run_well(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "raw", source, &uri],
        );
        let back = disk.served.path("back.qcow2");
        run_well(
            "qemu-img",
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                "qcow2",
                &uri,
                back.to_str().unwrap(),
            ],
        );
        run_well(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "qcow2",
                source,
                back.to_str().unwrap(),
            ],
        );
    }
}

#[test]
fn qemu_io_writes_zeroes_discards_and_flushes_at_any_alignment() {
    let disk = disk(false);
    let uri = disk.served.unix.uri("disk");
    let commands = [
        "write -P 0xab 0 1M",
        "write -f -P 0xcd 513 1000",
        "read -P 0xab 0 513",
        "read -P 0xcd 513 1000",
        "write -z -u 4096 65536",
        "read -P 0 4096 65536",
        "write -z -f 100000 777",
        "read -P 0 100000 777",
        "read -P 0xab 100777 1000",
        "discard 524288 65536",
        "flush",
        "write -P 0x11 33554432 32M",
        "read -P 0x11 33554432 32M",
        "aio_write -P 1 0 64k",
        "aio_write -P 2 64k 64k",
        "aio_flush",
        "read -P 2 64k 64k",
    ];
    let mut arguments = vec!["-f", "raw", &uri];
    commands
        .iter()
        .for_each(|command| arguments.extend(["-c", command]));
    let out = run_well("qemu-io", &arguments);
    assert!(!out.contains("failed"), "{out}");
}

#[test]
fn fio_finds_every_block_as_it_wrote_it() {
    let disk = disk(false);
    for address in transports(&disk) {
        let uri = format!("--uri={}", address.uri("disk"));
        run_well(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                "--rw=randrw",
                "--bsrange=512-128k",
                "--bs_unaligned=0",
                "--iodepth=32",
                "--size=48m",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--fsync=64",
                "--randseed=7",
                "--verify_backlog=1024",
                "--output-format=terse",
                "--verify_state_save=0",
            ],
        );
    }
}

#[test]
fn a_read_only_disk_is_read_and_not_written() {
    let disk = disk(true);
    let uri = disk.served.unix.uri("disk");
    assert_eq!(run_well("nbdinfo", &["--is", "read-only", &uri]), "");
    run_well(
        "qemu-io",
        &["-r", "-f", "raw", "-c", "read -P 0 0 1M", &uri],
    );
    let refused = run("qemu-io", &["-f", "raw", "-c", "write 0 512", &uri]);
    assert!(!refused.status.success());
}

/// The crate speaks NBD_OPT_EXPORT_NAME and simple replies, as old clients do.
#[test]
fn the_nbd_crate_attaches_by_export_name() {
    let disk = disk(false);
    let mut stream = UnixStream::connect(disk.served.socket()).unwrap();
    let export = nbd::client::handshake(&mut stream, b"disk").unwrap();
    assert_eq!(export.size, SIZE);
    let mut client = nbd::client::NbdClient::new(&mut stream, &export);
    let content = pattern(12_345, 3);
    client.seek(SeekFrom::Start(777)).unwrap();
    client.write_all(&content).unwrap();
    client.seek(SeekFrom::Start(777)).unwrap();
    let mut read = vec![0; content.len()];
    client.read_exact(&mut read).unwrap();
    assert!(read == content);
}

#[test]
fn many_connections_share_one_disk() {
    let disk = Arc::new(disk(false));
    let writers: Vec<_> = (0..64u64)
        .map(|index| {
            let disk = Arc::clone(&disk);
            std::thread::spawn(move || {
                let mut client = disk.served.client("disk", index.is_multiple_of(2));
                let content = pattern(100_000, index);
                let length = u32::try_from(content.len()).unwrap();
                let answer = client.ask(nbd_common::WRITE, index * 1_000_000 + 1, length, &content);
                assert_eq!(answer.error, 0);
            })
        })
        .collect();
    writers
        .into_iter()
        .for_each(|writer| writer.join().unwrap());
    let mut client = disk.served.client("disk", true);
    for index in 0..64u64 {
        let answer = client.ask(nbd_common::READ, index * 1_000_000 + 1, 100_000, &[]);
        assert!(answer.data == pattern(100_000, index), "block {index}");
    }
}
