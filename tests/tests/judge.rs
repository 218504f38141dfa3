//! The witness, which judges all other tests, is judged itself: disks and memory that do not belong together must be found,
//! a pair that does must not. Plain QEMU on plain files; nothing of Epochgate takes part.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use epochgate_tests::qmp::{MEMORY_MIB, Machine, Qemu};
use epochgate_tests::serial::{Serial, Verdict};
use epochgate_tests::site::{DISK_BYTES, make_image, tempdir, vm_lock};
use serde_json::json;

/// Copies of a guest's disks (1, 2) and of its memory with the devices (2), taken while it was stopped: memory 2 belongs to
/// disks 2; disks 1 are older and disks 3, those it went on with, are newer.
struct Past {
    dir: tempfile::TempDir,
    before: Verdict,
}

impl Past {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn record() -> Self {
        let dir = tempdir();
        let path = |name: &str| dir.path().join(name);
        let machine = Machine {
            dir: dir.path().to_owned(),
            ram: path("ram"),
            disks: [path("disk-a"), path("disk-b")],
        };
        make_image(&machine.ram, MEMORY_MIB << 20);
        for disk in &machine.disks {
            make_image(disk, DISK_BYTES);
        }
        let mut guest = Qemu::start("past", &machine, false);
        guest.ask("cont", json!({}));
        guest.serial.at_work();
        let stop_and_copy = |guest: &mut Qemu, number: u32| {
            // It returns when the disks have all that the guest wrote.
            guest.ask("stop", json!({}));
            for disk in ["disk-a", "disk-b"] {
                copy(&path(disk), &path(&format!("{disk}-{number}")));
            }
        };
        stop_and_copy(&mut guest, 1);
        guest.ask("cont", json!({}));
        goes_far_on(&guest.serial);
        stop_and_copy(&mut guest, 2);
        guest.save_devices(&path("devices"));
        copy(&path("ram"), &path("ram-2"));
        let before = guest.serial.latest().unwrap();
        guest.ask("cont", json!({}));
        goes_far_on(&guest.serial);
        stop_and_copy(&mut guest, 3);
        let verdict = guest.serial.latest().unwrap();
        assert!(verdict.good(), "{:?}", guest.serial.complaints());
        guest.quit();
        Self { dir, before }
    }

    /// Memory 2 on the given copies of the two disks: what the witness says after a sweep over all of both.
    fn resume_on(&self, name: &str, disks: [u32; 2]) -> (Verdict, Serial) {
        let [a, b] = [("disk-a", disks[0]), ("disk-b", disks[1])].map(|(disk, number)| {
            let copied = self.path(&format!("{name}-{disk}"));
            copy(&self.path(&format!("{disk}-{number}")), &copied);
            copied
        });
        let ram = self.path(&format!("{name}-ram"));
        copy(&self.path("ram-2"), &ram);
        let machine = Machine {
            dir: self.dir.path().to_owned(),
            ram,
            disks: [a, b],
        };
        let mut guest = Qemu::start(name, &machine, true);
        guest.resume_from(&self.path("devices"));
        // All sweeps count, so that each block of both disks is looked at before it is written again.
        let first = guest.serial.wait("the witness", |_| true);
        let verdict = guest
            .serial
            .wait("two sweeps", |now| now.pass >= first.pass + 2);
        let serial = guest.serial.clone();
        guest.quit();
        (verdict, serial)
    }
}

/// So many writes to both disks that some of them are found before the guest, going on, has written the blocks again.
fn goes_far_on(serial: &Serial) {
    for _ in 0..8 {
        serial.goes_on();
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
}

/// How many of the blocks that are reported one by one (the first 32) are on each disk, and how many differ in this way.
fn count(serial: &Serial, kind: &str) -> ([usize; 2], usize) {
    let text = serial.text();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| line.starts_with("MISMATCH "))
        .collect();
    let on = |disk: &str| lines.iter().filter(|line| line.contains(disk)).count();
    let kind = format!("kind={kind}");
    let of_kind = lines.iter().filter(|line| line.ends_with(&kind)).count();
    ([on("disk=0 "), on("disk=1 ")], of_kind)
}

#[test]
fn the_witness_finds_what_does_not_belong_together_and_nothing_else() {
    let _alone = vm_lock();
    let past = Past::record();

    let (verdict, serial) = past.resume_on("same", [2, 2]);
    assert_eq!(verdict.run, past.before.run);
    assert!(
        verdict.good() && verdict.checked > past.before.checked,
        "{verdict:?}\n{}",
        serial.text()
    );
    assert_eq!(serial.complaints(), Vec::<String>::new());

    // Both disks, and one alone, as when the disks of a VM are not cut together.
    for (name, disks, kind) in [
        ("newer", [3, 3], "newer"),
        ("older", [1, 1], "older"),
        ("first-newer", [3, 2], "newer"),
        ("second-older", [2, 1], "older"),
    ] {
        let (verdict, serial) = past.resume_on(name, disks);
        assert_eq!(verdict.run, past.before.run);
        let (on_disk, of_kind) = count(&serial, kind);
        let text = serial.text();
        assert!(verdict.mismatches > 0 && of_kind > 0, "{name}: {text}");
        for (found, disk) in on_disk.iter().zip(disks) {
            assert!(
                *found == 0 || disk != 2,
                "{name}: a good disk was accused\n{text}"
            );
        }
    }
}
