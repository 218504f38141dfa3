//! Block devices as images, with clients that others wrote: real devices of the kernel, of both usual sector sizes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod life_common;
#[path = "life_common/loop_device.rs"]
mod loop_device;
mod nbd_common;

use std::path::Path;
use std::process::Command;

use life_common::{Running, qemu_io};
use loop_device::LoopDevice;
use nbd_common::{pattern, run, run_well};
use nbd_server::control::client::ControlError;
use nbd_server::group::{DiskConfig, GroupConfig, GroupMode};
use nbd_server::{ExportConfig, Gateway, GatewayConfig};

const MIB: u64 = 1 << 20;

/// A gateway that serves `devices` by the names 0, 1, ...
fn serving(devices: &[&LoopDevice], direct: bool) -> Running {
    Running::with(&[], |config| {
        config.exports = devices
            .iter()
            .enumerate()
            .map(|(number, device)| ExportConfig {
                name: number.to_string(),
                image: device.path.clone(),
                direct,
                ..ExportConfig::default()
            })
            .collect();
    })
}

fn range(start: u64, end: u64) -> std::ops::Range<usize> {
    usize::try_from(start).unwrap()..usize::try_from(end).unwrap()
}

#[test]
fn a_block_device_is_an_ordinary_disk_to_clients() {
    for sector in [512, 4096] {
        let device = LoopDevice::new(16 * MIB, sector);
        let running = serving(&[&device], false);
        let uri = running.uri("0");
        let info = run_well("nbdinfo", &["--json", &uri]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["exports"][0]["export-size"], 16 * MIB);
        assert_eq!(info["exports"][0]["block_size_minimum"], 1);

        let mut content = pattern(16 << 20, 7);
        let (input, output) = (running.dir().join("in"), running.dir().join("out"));
        std::fs::write(&input, &content).unwrap();
        let parallel = ["--connections=4", "--requests=16", "--flush"];
        let copy = |from: &str, to: &str| {
            run_well("nbdcopy", &[&parallel[..], &[from, to]].concat());
        };
        copy(input.to_str().unwrap(), &uri);
        // Zeros begin and end within sectors, with and without leave to give the space back.
        let commands = [
            "write -z 1234567 100001",
            "write -z -u 3000001 2000003",
            "write -z -u 100 7",
            "write -P 9 5000001 511",
            "flush",
        ];
        qemu_io(&uri, &commands);
        for (start, len) in [(1_234_567, 100_001), (3_000_001, 2_000_003), (100, 7)] {
            content[range(start, start + len)].fill(0);
        }
        content[range(5_000_001, 5_000_512)].fill(9);
        copy(&uri, output.to_str().unwrap());
        assert!(std::fs::read(&output).unwrap() == content, "read back");
        // The kernel can't tell of a device what is in use, so all of it is data.
        let map = run_well("nbdinfo", &["--map", &uri]);
        assert_eq!(
            map.split_whitespace().collect::<Vec<_>>(),
            ["0", "16777216", "0", "data"]
        );

        // What is discarded is anything, and all around it stays, also within its first and last sector.
        qemu_io(&uri, &["discard 8000001 1000001", "flush"]);
        copy(&uri, output.to_str().unwrap());
        let read = std::fs::read(&output).unwrap();
        let discarded = range(8_000_001, 9_000_002);
        assert!(read[..discarded.start] == content[..discarded.start]);
        assert!(read[discarded.end..] == content[discarded.end..]);
        // This device gives its space back, and reads as zeros then.
        assert!(
            read[range(8_004_096, 8_996_864)]
                .iter()
                .all(|byte| *byte == 0)
        );
        drop(running);
        assert!(
            std::fs::read(device.backing()).unwrap() == read,
            "the device itself"
        );
    }
}

#[test]
fn past_the_page_cache_clients_are_told_the_sectors_of_the_device() {
    for sector in [512, 4096] {
        let device = LoopDevice::new(16 * MIB, sector);
        let running = serving(&[&device], true);
        let uri = running.uri("0");
        let info = run_well("nbdinfo", &["--json", &uri]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["exports"][0]["block_size_minimum"], sector);
        qemu_io(
            &uri,
            &[
                "write -P 3 1M 2M",
                "write -z -u 2M 64k",
                "write -P 4 100 300",
                "flush",
            ],
        );
        qemu_io(
            &uri,
            &[
                "read -P 3 1M 1M",
                "read -P 0 2M 64k",
                "read -P 4 100 300",
                "read -P 0 0 100",
            ],
        );
    }
}

#[tokio::test]
async fn a_device_has_the_size_that_it_has() {
    let device = LoopDevice::new(8 * MIB, 512);
    let running = serving(&[&device], false);
    let client = running.client().await;
    let refused = client.resize_export("0", 16 * MIB, false).await;
    let refused: ControlError = refused.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("resize the device itself first"),
        "{refused}"
    );
    assert_eq!(length_seen(&running), 8 * MIB);
    device.resize(16 * MIB);
    assert_eq!(length_seen(&running), 8 * MIB, "until it is told");
    client.resize_export("0", 16 * MIB, false).await.unwrap();
    assert_eq!(length_seen(&running), 16 * MIB);
    qemu_io(&running.uri("0"), &["write -P 1 15M 1M"]);
}

fn length_seen(running: &Running) -> u64 {
    let size = run_well("nbdinfo", &["--size", &running.uri("0")]);
    size.trim().parse().unwrap()
}

struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn the_system_and_a_server_never_write_to_one_device() {
    let device = LoopDevice::new(16 * MIB, 512);
    let path = device.path.to_str().unwrap();
    run_well("mkfs.ext4", &["-q", path]);
    let dir = tempfile::tempdir().unwrap();
    let mount = ["-o", "ro,noload", path, dir.path().to_str().unwrap()];
    run_well("mount", &mount);
    let mounted = Mounted(dir.path());
    let config = |read_only| GatewayConfig {
        listen: vec![format!(
            "unix:{}",
            dir.path().with_extension("sock").display()
        )],
        exports: vec![ExportConfig {
            name: "disk".to_owned(),
            image: device.path.clone(),
            read_only,
            ..ExportConfig::default()
        }],
        ..GatewayConfig::default()
    };
    let refused = Gateway::start(&config(false)).unwrap_err();
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("it is mounted"), "{why}");
    // Who only reads is no danger.
    drop(Gateway::start(&config(true)).unwrap());
    drop(mounted);
    let running = serving(&[&device], false);
    let refused = run("mount", &mount);
    assert!(!refused.status.success(), "a served device was mounted");
    assert!(Gateway::start(&config(false)).is_err(), "two servers");
    drop(running);
    // A child that another test forks holds the device until it becomes another program.
    while !run("mount", &mount).status.success() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(Mounted(dir.path()));
}

#[test]
fn a_group_on_block_devices_holds_commits_and_applies() {
    let devices = [
        LoopDevice::new(16 * MIB, 512),
        LoopDevice::new(16 * MIB, 4096),
    ];
    let disks = ["root", "data"].iter().zip(&devices);
    let disks: Vec<DiskConfig> = disks
        .map(|(name, device)| DiskConfig {
            name: (*name).to_owned(),
            image: device.path.clone(),
            read_only: false,
            export: None,
        })
        .collect();
    let mut running = Running::with(&[], |config| {
        let log = config.control.as_ref().unwrap().with_extension("log");
        config.groups = vec![GroupConfig {
            mode: GroupMode::Async,
            ..GroupConfig::new("vm", log, disks)
        }];
    });
    let config = running.config.clone();
    for disk in ["vm/root", "vm/data"] {
        let commands = [
            "write -P 7 0 16M",
            "write -z 1000001 2000001",
            "write -z -u 5000001 1000001",
            "discard 8000001 1000001",
            "write -P 9 513 100",
            "flush",
        ];
        qemu_io(&running.uri(disk), &commands);
    }
    // All epochs are applied at the stop, so that what is read afterwards comes from the devices.
    running.restart(&config);
    for disk in ["vm/root", "vm/data"] {
        let commands = [
            "read -P 7 0 513",
            "read -P 9 513 100",
            "read -P 7 613 999388",
            "read -P 0 1000001 2000001",
            "read -P 7 3000002 1999999",
            "read -P 0 5000001 1000001",
            "read -P 7 6000002 1999999",
            "read -P 7 9000002 7777214",
        ];
        qemu_io(&running.uri(disk), &commands);
        let info = run_well("nbdinfo", &["--size", &running.uri(disk)]);
        assert_eq!(info.trim(), "16777216");
    }
    let mut again = config.clone();
    again.listen = vec![format!(
        "unix:{}",
        running.dir().join("other.sock").display()
    )];
    again.control = None;
    let refused = Gateway::start(&again).unwrap_err();
    assert!(format!("{refused:?}").contains("InUse"), "{refused:?}");
}
