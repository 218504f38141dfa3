//! A sample of the fault matrix, `epochgate bench faults`: cells that together have every victim and every kind of fault. The
//! whole matrix takes hours: `make faults`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::command::run_for;
use epochgate_tests::paths;
use epochgate_tests::site::vm_lock;
use serde_json::Value;

/// What processes do to each other. The first was a fault of the source: it let go of the standby instead of the VM.
const PROCESSES: &[&str] = &[
    "running:kill/source-qemu/source-after-stop",
    "running:kill/source-coordinator/source-mid-send",
    "running:kill/source-host/standby-before-ack",
    "running:kill/gateway/gateway-before-commit-record",
    "running:restart/gateway/gateway-after-seal",
    "running:restart/gateway/gateway-during-apply",
    "running:kill/standby-qemu/random",
    "running:kill/standby-coordinator/standby-mid-merge",
    "running:kill/standby-host/source-after-commit1",
    "running:kill/source-host+gateway/gateway-after-commit-record",
    "running:kill/standby-host+gateway/random",
    "running:freeze/source-qemu/source-after-resume",
    "running:freeze/source-host/gateway-after-seal",
    "running:freeze/gateway/source-after-capture",
    "running:freeze/standby-host/source-after-send",
    "takeover:kill/gateway/standby-after-takeover",
    "takeover:kill/standby-host/standby-before-resume",
    "takeover-from-sleeper:wake/source-host/standby-after-takeover",
    "first-copy:kill/standby-host/standby-mid-base",
    "first-copy:kill/source-host/source-mid-base",
];

/// What hosts, networks, disks and clocks do. Needs root: namespaces, mounts, loop devices.
const HOSTS: &[&str] = &[
    "running:power-off/source/source-after-commit2",
    "running:power-off/storage/random",
    "running:isolate/source/random",
    "running:isolate/standby/gateway-after-append",
    "running:cut/source-standby/random",
    "running:cut-one-way/standby-to-source/random",
    "running:cut-one-way/source-to-storage/source-after-stop",
    "running:lasting-cut/source-storage/random",
    "takeover:cut/standby-storage/standby-before-takeover",
    "running:disk-full/log/random",
    "running:disk-full/images/random",
    "running:eio/images/random",
    "running:clock-forward/source/random",
    "takeover:clock-back/standby/standby-before-takeover",
];

/// Runs each cell once; all must be good.
fn all_good(cells: &[&str]) {
    let _alone = vm_lock();
    let mut args = vec!["bench", "faults", "--json", "--parallel", "2"];
    let (guest, qemu) = (paths::guest().display().to_string(), paths::qemu());
    args.extend(["--guest", &guest, "--qemu", &qemu]);
    for cell in cells {
        args.extend(["--cell", cell]);
    }
    let ended = run_for(900, paths::epochgate(), args).with(0);
    let summary: Value = serde_json::from_str(&ended.out).unwrap();
    let total = &summary["total"];
    assert_eq!(total["cells"], cells.len(), "{summary}");
    assert_eq!(total["good"], cells.len(), "{summary}");
    assert!(total["checked"].as_u64().unwrap() > 10_000, "{summary}");
}

#[test]
fn a_guest_survives_what_its_processes_may_suffer() {
    all_good(PROCESSES);
}

#[test]
fn a_guest_survives_what_hosts_networks_and_disks_do() {
    all_good(HOSTS);
}

#[test]
fn every_cell_is_named_with_its_ending() {
    let list = run_for(20, paths::epochgate(), ["bench", "faults", "--list"]).with(0);
    for cell in PROCESSES.iter().chain(HOSTS) {
        let line = list.out.lines().find(|line| line.starts_with(cell));
        assert!(line.is_some_and(|line| line.len() > cell.len()), "{cell}");
    }
    let ended = run_for(
        20,
        paths::epochgate(),
        ["bench", "faults", "--cell", "earthquake"],
    );
    ended
        .with(2)
        .says(&["no cell is called `earthquake`", "--list"]);
}
