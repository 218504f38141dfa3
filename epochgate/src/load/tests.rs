//! The load generator against a real server: right data passes, wrong data never does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nbd_server::{ExportConfig, Gateway, GatewayConfig};

use super::{Content, Load, Mismatch, Order, Stop, Target, flush, run};
use crate::bench::image::make_image;

const SIZE: u64 = 8 << 20;

struct Served {
    dir: tempfile::TempDir,
    target: Target,
    _gateway: Gateway,
}

impl Served {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk.img");
        make_image(&image, SIZE).unwrap();
        let socket = dir.path().join("nbd.sock");
        let config = GatewayConfig {
            listen: vec![format!("unix:{}", socket.display())],
            exports: vec![ExportConfig {
                name: "disk".to_owned(),
                image,
                ..ExportConfig::default()
            }],
            ..GatewayConfig::default()
        };
        Self {
            _gateway: Gateway::start(&config).unwrap(),
            target: Target {
                socket,
                export: "disk".to_owned(),
            },
            dir,
        }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn damage(&self, offset: u64, bytes: &[u8]) {
        let file = std::fs::File::options()
            .write(true)
            .open(self.image())
            .unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }
}

/// Reads every block once.
fn sweep() -> Load {
    Load {
        order: Order::Sequential,
        stop: Stop::Requests(SIZE / 4096),
        ..Load::new(SIZE)
    }
}

fn mismatch(error: &anyhow::Error) -> u64 {
    error
        .downcast_ref::<Mismatch>()
        .unwrap_or_else(|| panic!("not a mismatch: {error:#}"))
        .offset
}

#[test]
fn right_data_passes_in_simple_and_structured_replies() {
    let served = Served::start();
    for structured in [false, true] {
        let load = Load {
            structured,
            ..sweep()
        };
        let outcome = run(&served.target, &load, &mut Content::new(SIZE)).unwrap();
        assert_eq!(outcome.requests, SIZE / 4096);
        assert_eq!((outcome.bytes, outcome.verified), (SIZE, SIZE));
    }
}

#[test]
fn one_wrong_byte_in_a_sector_end_is_found() {
    let served = Served::start();
    // The last byte of a sector in the middle of a block, so neither end of the request.
    served.damage(5 * 4096 + 3 * 512 + 511, &[0]);
    for structured in [false, true] {
        let load = Load {
            structured,
            ..sweep()
        };
        let error = run(&served.target, &load, &mut Content::new(SIZE)).unwrap_err();
        assert_eq!(mismatch(&error), 5 * 4096 + 3 * 512);
    }
}

#[test]
fn zeros_in_place_of_data_are_found() {
    let served = Served::start();
    served.damage(1 << 20, &[0; 65536]);
    let error = run(&served.target, &sweep(), &mut Content::new(SIZE)).unwrap_err();
    assert_eq!(mismatch(&error), 1 << 20);
}

#[test]
fn a_lost_write_is_found() {
    let served = Served::start();
    let mut content = Content::new(SIZE);
    let write = Load {
        read_percent: 0,
        ..sweep()
    };
    run(&served.target, &write, &mut content).unwrap();
    run(&served.target, &sweep(), &mut content).unwrap();
    let mut old = vec![0; 4096];
    super::fill_content(&mut old, 40960, 0);
    served.damage(40960, &old);
    let error = run(&served.target, &sweep(), &mut content).unwrap_err();
    assert_eq!(mismatch(&error), 40960);
}

#[test]
fn reads_and_writes_of_four_connections_are_told_apart() {
    let served = Served::start();
    let mut content = Content::new(SIZE);
    let mixed = Load {
        connections: 4,
        depth: 16,
        block: 8192,
        read_percent: 50,
        flush_every: 16,
        stop: Stop::Requests(4000),
        ..Load::new(SIZE)
    };
    let outcome = run(&served.target, &mixed, &mut content).unwrap();
    assert_eq!(outcome.requests, 4000);
    assert!(outcome.flushes > 0 && outcome.verified > 0 && outcome.verified < outcome.bytes);
    assert!(flush(&served.target).unwrap().is_some());
    run(&served.target, &sweep(), &mut content).unwrap();
    // Another order of the same blocks, each once.
    let shuffled = Load {
        order: Order::Shuffled,
        ..sweep()
    };
    let outcome = run(&served.target, &shuffled, &mut content).unwrap();
    assert_eq!(outcome.verified, SIZE);
}
