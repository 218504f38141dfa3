//! Backups with nothing but the tools that a distribution ships, by the script that docs/backup.md shows, while a client writes all the time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use epochgate_tests::command::{Ended, epochgate, run_well};
use epochgate_tests::nbd::{Client, FLUSH, Request, TRIM, ZEROES};
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::random::Random;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use epochgate_tests::waiting::wait_until;

const BYTES: u64 = 48 << 20;
const DISKS: [&str; 2] = ["root", "data"];

struct Bench {
    dir: tempfile::TempDir,
    /// Writes that were answered.
    writes: AtomicU64,
    over: AtomicBool,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempdir(),
            writes: AtomicU64::new(0),
            over: AtomicBool::new(false),
        };
        let mut text = format!(
            "control = \"{}\"\nlisten = [\"unix:{}\"]\n[[group]]\nname = \"vm\"\nlog = \"{}\"\nmode = \"async\"\n\
             epoch_interval_ms = 20\nepoch_memory = \"\"\n[group.history]\nage = \"1d\"\n",
            bench.file("gateway.sock"),
            bench.file("nbd.sock"),
            bench.file("log"),
        );
        for disk in DISKS {
            let image = bench.path(&format!("{disk}.img"));
            make_image(&image, BYTES);
            text += &format!(
                "[[group.disk]]\nname = \"{disk}\"\nimage = \"{}\"\n",
                image.display()
            );
        }
        std::fs::write(bench.path("gateway.toml"), text).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn start(&self) -> Process {
        let config = self.file("gateway.toml");
        let arguments = ["gateway", "--config", &config];
        let mut gateway = Process::epochgate("gateway", self.dir.path(), arguments, &[]);
        wait_for_socket(&self.path("gateway.sock"), &mut gateway);
        gateway
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.file("nbd.sock"))
    }

    fn script(&self, arguments: &[&str]) -> Ended {
        let script = paths::workspace().join("docs/examples/backup-with-stock-tools.sh");
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "300"]).arg(script).args([
            "--control",
            &self.file("gateway.sock"),
            "--nbd",
            &format!("unix:{}", self.file("nbd.sock")),
        ]);
        command.args(arguments).env("EPOCHGATE", paths::epochgate());
        Ended::from(command.output().unwrap())
    }

    /// Makes a backup; returns its pin, which the test keeps under another name.
    fn backup(&self) -> String {
        let dir = self.file("backups");
        let ended = self.script(&["backup", "vm", &dir, "root", "data"]).with(0);
        let pin = ended.out.trim().to_owned();
        let control = self.file("gateway.sock");
        let at = format!("pin={pin}");
        let keep = format!("kept-{pin}");
        epochgate([
            "log",
            "pin",
            "vm",
            &keep,
            "--at",
            &at,
            "--control",
            &control,
        ])
        .with(0);
        pin
    }

    fn client(&self, disk: &str) -> Client {
        Client::attach(&self.path("nbd.sock"), &format!("vm/{disk}"), false)
    }

    /// Gives every byte of the disks a content.
    fn fill(&self) {
        let mut random = Random::new("fill");
        for disk in DISKS {
            let mut client = self.client(disk);
            for at in (0..BYTES).step_by(1 << 20) {
                let request = Request::write(at, random.bytes(1 << 20));
                assert_eq!(client.ask(&request).unwrap().error, 0);
            }
        }
    }

    /// Writes, trims and zeroes on both disks until it is over.
    fn write(&self, seed: &str) {
        let mut random = Random::new(seed);
        let mut clients = DISKS.map(|disk| self.client(disk));
        while !self.over.load(Ordering::Relaxed) {
            let client = &mut clients[usize::from(random.one_in(2))];
            // Most of the disk stays as it is.
            let part = BYTES / 8;
            let offset = random.within(0..part) + part * random.within(0..2) * 5;
            let len = u32::try_from(random.within(1..64 << 10)).unwrap();
            let request = match random.within(0..12) {
                0 => Request::new(TRIM, offset, len),
                1 => Request::new(ZEROES, offset, len),
                2 => Request::new(FLUSH, 0, 0),
                _ => Request::write(offset, random.bytes(len as usize)),
            };
            assert_eq!(client.ask(&request).unwrap().error, 0);
            self.writes.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn wait_for_writes(&self) {
        let enough = self.writes.load(Ordering::Relaxed) + 40;
        wait_until(
            "more writes",
            || (self.writes.load(Ordering::Relaxed) >= enough).then_some(()),
            String::new,
        );
    }
}

/// Ends the writer, also when the test fails beside it.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Bytes that a file really takes.
fn space(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn a_chain_of_backups_restores_each_of_its_points() {
    let bench = Bench::new();
    let mut gateway = bench.start();
    bench.fill();
    let pins: Vec<String> = std::thread::scope(|scope| {
        let _ends = Ends(&bench.over);
        let writer = scope.spawn(|| bench.write("writer"));
        let mut pins = Vec::new();
        for _ in 0..4 {
            bench.wait_for_writes();
            pins.push(bench.backup());
            let dir = bench.file("backups");
            bench
                .script(&["verify", "vm", &dir, "root", "data"])
                .with(0);
        }
        assert!(!writer.is_finished(), "the writer has ended too early");
        pins
    });
    let dir = bench.file("backups");
    let list = bench.script(&["list", &dir]).with(0);
    assert_eq!(list.out.lines().collect::<Vec<_>>(), pins);
    for disk in DISKS {
        let sizes: Vec<u64> = pins
            .iter()
            .map(|pin| space(&bench.path(&format!("backups/{pin}/{disk}.qcow2"))))
            .collect();
        let less = sizes.iter().skip(1).all(|size| size * 2 < sizes[0]);
        assert!(less, "increments are no smaller than all: {sizes:?}");
        for pin in &pins {
            let (restored, past) = (bench.file("restored.raw"), bench.file("past.raw"));
            bench
                .script(&["restore", &dir, disk, pin, &restored])
                .with(0);
            let export = bench.uri(&format!("vm/{disk}@pin=kept-{pin}"));
            let _ = std::fs::remove_file(&past);
            run_well("nbdcopy", [&export, &past]);
            run_well("cmp", [&restored, &past]);
        }
    }
    gateway.stop();
}

#[test]
fn a_backup_that_can_not_be_made_leaves_nothing_behind() {
    let bench = Bench::new();
    let mut gateway = bench.start();
    bench.fill();
    let pin = bench.backup();
    let control = bench.file("gateway.sock");
    let pins = || {
        let list = epochgate(["log", "list", "vm", "--json", "--control", &control]).with(0);
        let list: serde_json::Value = serde_json::from_str(&list.out).unwrap();
        list["status"]["pins"].as_array().unwrap().len()
    };
    epochgate(["log", "unpin", "vm", &pin, "--control", &control]).with(0);
    let before = pins();
    let dir = bench.file("backups");
    let ended = bench.script(&["backup", "vm", &dir, "root"]).with(1);
    assert!(ended.err.contains("begin anew"), "{}", ended.err);
    assert_eq!(pins(), before);
    let list = bench.script(&["list", &dir]).with(0);
    assert_eq!(list.out.trim(), pin);
    bench.script(&["backup", "vm"]).with(2);
    gateway.stop();
}
