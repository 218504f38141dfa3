//! Backups with nothing but the tools that a distribution ships, by the script that docs/backup.md shows, while a client writes all the time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::Command;

use epochgate_tests::busy_group::{BusyGroup, DISKS};
use epochgate_tests::command::{Ended, run_well};
use epochgate_tests::paths;

const BYTES: u64 = 48 << 20;

/// The script, for this group.
fn script(group: &BusyGroup, arguments: &[&str]) -> Ended {
    let script = paths::workspace().join("docs/examples/backup-with-stock-tools.sh");
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "300"]).arg(script).args([
        "--control",
        &group.control(),
        "--nbd",
        &format!("unix:{}", group.file("nbd.sock")),
    ]);
    command.args(arguments).env("EPOCHGATE", paths::epochgate());
    Ended::from(command.output().unwrap())
}

/// Makes a backup; returns its pin, which the test keeps under another name.
fn backup(group: &BusyGroup) -> String {
    let dir = group.file("backups");
    let ended = script(group, &["backup", "vm", &dir, "root", "data"]).with(0);
    let pin = ended.out.trim().to_owned();
    group.keep(&pin, &format!("kept-{pin}"));
    pin
}

/// Bytes that a file really takes.
fn space(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_chain_of_backups_restores_each_of_its_points() {
    let group = BusyGroup::new(BYTES);
    let mut gateway = group.start();
    group.fill();
    let dir = group.file("backups");
    let pins: Vec<String> = group.while_written(|| {
        let one = |_| {
            group.wait_for_writes();
            let pin = backup(&group);
            script(&group, &["verify", "vm", &dir, "root", "data"]).with(0);
            pin
        };
        (0..4).map(one).collect()
    });
    let list = script(&group, &["list", &dir]).with(0);
    assert_eq!(list.out.lines().collect::<Vec<_>>(), pins);
    for disk in DISKS {
        let sizes: Vec<u64> = pins
            .iter()
            .map(|pin| space(&group.path(&format!("backups/{pin}/{disk}.qcow2"))))
            .collect();
        let less = sizes.iter().skip(1).all(|size| size * 2 < sizes[0]);
        assert!(less, "increments are no smaller than all: {sizes:?}");
        for pin in &pins {
            let (restored, past) = (group.file("restored.raw"), group.file("past.raw"));
            script(&group, &["restore", &dir, disk, pin, &restored]).with(0);
            let export = group.uri(&format!("vm/{disk}@pin=kept-{pin}"));
            let _ = std::fs::remove_file(&past);
            run_well("nbdcopy", [&export, &past]);
            run_well("cmp", [&restored, &past]);
        }
    }
    gateway.stop();
}

#[test]
fn a_backup_that_can_not_be_made_leaves_nothing_behind() {
    let group = BusyGroup::new(BYTES);
    let mut gateway = group.start();
    group.fill();
    let pin = backup(&group);
    group.unpin(&pin);
    let before = group.pins();
    let dir = group.file("backups");
    let ended = script(&group, &["backup", "vm", &dir, "root"]).with(1);
    assert!(ended.err.contains("begin anew"), "{}", ended.err);
    assert_eq!(group.pins(), before);
    let list = script(&group, &["list", &dir]).with(0);
    assert_eq!(list.out.trim(), pin);
    script(&group, &["backup", "vm"]).with(2);
    gateway.stop();
}
