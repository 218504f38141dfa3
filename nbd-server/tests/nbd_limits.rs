//! Bounds on clients: half-open connections, slow ones, many of one client, and the pace of an export.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod nbd_common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nbd_common::{
    Client, READ, Served, at_end, go_data, option, option_reply, pattern, raw_image, run_well,
};
use nbd_server::gateway::{ExportConfig, Gateway, GatewayConfig};
use nbd_server::limits::Limits;
use nbd_server::rates::RateLimit;

const SIZE: u64 = 4 << 20;

fn served(limits: Limits) -> (Served, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (_, export) = raw_image(dir.path(), SIZE, false);
    (Served::new(vec![("disk", export)], limits), dir)
}

#[test]
fn half_open_connections_drive_out_each_other_and_nobody_else() {
    let (served, _dir) = served(Limits {
        max_handshakes: 4,
        max_connections: 12,
        handshake_timeout: Duration::from_secs(600),
        ..Limits::default()
    });
    let mut attached = served.client("disk", true);
    let mut half_open = Vec::new();
    for _ in 0..40 {
        // Refused at once while too many that were cut are still ending: come again.
        let stream = loop {
            let mut stream = UnixStream::connect(served.socket()).unwrap();
            if stream.read_exact(&mut [0; 18]).is_ok() {
                break stream;
            }
        };
        half_open.push(stream);
    }
    let kept = half_open.split_off(36);
    for stream in &mut half_open {
        assert!(at_end(stream), "an older one is cut");
    }
    assert_eq!(attached.ask(READ, 0, 512, &[]).error, 0);
    for mut stream in kept {
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(&option(7, &go_data("disk"))).unwrap();
        while option_reply(&mut stream).0 != 1 {}
    }
}

#[test]
fn a_client_has_so_many_connections_and_is_told() {
    let (served, _dir) = served(Limits {
        max_connections_per_client: 2,
        ..Limits::default()
    });
    let first = served.client("disk", true);
    let _second = served.client("disk", true);
    let mut third = Client::connect(&served.socket());
    third.write_all(&3u32.to_be_bytes()).unwrap();
    let mut go = || {
        third.write_all(&option(7, &go_data("disk"))).unwrap();
        loop {
            let (kind, data) = option_reply(&mut third);
            if kind != 3 {
                break (kind, String::from_utf8(data).unwrap());
            }
        }
    };
    let (kind, said) = go();
    assert_eq!(kind, 1 << 31 | 2);
    assert!(said.contains("2 connections"), "{said}");
    drop(first);
    // Its thread ends when it sees that.
    while go().0 != 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_client_that_dribbles_its_handshake_is_given_up() {
    let (served, _dir) = served(Limits {
        handshake_timeout: Duration::from_millis(400),
        ..Limits::default()
    });
    let mut stream = Client::connect(&served.socket());
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    // Each byte is soon enough for itself; all together would take a minute.
    let slow = option(99, &[0; 600]);
    let ended = slow.iter().any(|byte| {
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(&[*byte]).is_err()
    });
    assert!(ended);
}

#[test]
fn an_export_keeps_its_pace_over_all_connections() {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str| {
        let path = dir.path().join(name);
        let content = pattern(usize::try_from(SIZE).unwrap(), 3);
        std::fs::write(&path, content).unwrap();
        path
    };
    let export = |name: &str| ExportConfig {
        name: name.to_owned(),
        image: image(name),
        ..ExportConfig::default()
    };
    let limit = |export: &str, iops, bytes: Option<&str>| RateLimit {
        export: export.to_owned(),
        iops,
        bytes_per_second: bytes.map(str::to_owned),
    };
    let gateway = Gateway::start(&GatewayConfig {
        listen: vec![format!("unix:{}", dir.path().join("nbd.sock").display())],
        exports: vec![export("bytes"), export("requests"), export("free")],
        rate_limits: vec![
            limit("bytes", None, Some("2M")),
            limit("req*", Some(16), None),
        ],
        ..GatewayConfig::default()
    })
    .unwrap();
    let copy = |name: &str| {
        let start = Instant::now();
        let out = dir.path().join("copy");
        run_well(
            "nbdcopy",
            &[
                "--connections=4",
                "--request-size=131072",
                &gateway.addresses()[0].uri(name),
                out.to_str().unwrap(),
            ],
        );
        let took = start.elapsed();
        assert!(std::fs::read(&out).unwrap() == std::fs::read(dir.path().join(name)).unwrap());
        took
    };
    copy("free");
    // 4 MiB at 2 MiB/s, of which the first second is free; 32 reads at 16/s likewise.
    assert!(copy("bytes") >= Duration::from_millis(900));
    assert!(copy("requests") >= Duration::from_millis(900));
    gateway.shutdown();
}
