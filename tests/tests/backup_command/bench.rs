//! The stand of these tests: a gateway with a history, disks that are written all the time, and `epochgate backup` beside it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
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
use serde_json::Value;

/// Of each disk: more than one region of a backup, and no whole number of blocks.
pub const BYTES: u64 = (72 << 20) + 4096;
pub const DISKS: [&str; 2] = ["root", "data"];

/// It, and its gateway.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub gateway: Process,
    /// Writes that were answered.
    pub writes: AtomicU64,
    pub over: AtomicBool,
    /// Variables of the commands, for the S3 server.
    pub environment: Vec<(String, String)>,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempdir();
        let file = |name: &str| dir.path().join(name).display().to_string();
        let mut text = format!(
            "control = \"{}\"\nlisten = [\"unix:{}\"]\n[[group]]\nname = \"vm\"\nlog = \"{}\"\nmode = \"async\"\n\
             epoch_interval_ms = 20\nepoch_memory = \"\"\n[group.history]\nage = \"1d\"\n",
            file("gateway.sock"),
            file("nbd.sock"),
            file("log"),
        );
        for disk in DISKS {
            let image = dir.path().join(format!("{disk}.img"));
            make_image(&image, BYTES);
            text += &format!(
                "[[group.disk]]\nname = \"{disk}\"\nimage = \"{}\"\n",
                image.display()
            );
        }
        std::fs::write(dir.path().join("gateway.toml"), text).unwrap();
        let config = file("gateway.toml");
        let arguments = ["gateway", "--config", &config];
        let mut gateway = Process::epochgate("gateway", dir.path(), arguments, &[]);
        wait_for_socket(&dir.path().join("gateway.sock"), &mut gateway);
        Self {
            dir,
            gateway,
            writes: AtomicU64::new(0),
            over: AtomicBool::new(false),
            environment: Vec::new(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `epochgate backup`, with what follows.
    pub fn backup<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", "300"])
            .arg(paths::epochgate())
            .arg("backup")
            .args(arguments)
            .envs(self.environment.iter().cloned());
        Ended::from(command.output().unwrap())
    }

    pub fn create_args(&self, to: &str) -> Vec<String> {
        [
            "create",
            "vm",
            "--to",
            to,
            "--json",
            "--control",
            &self.file("gateway.sock"),
        ]
        .map(str::to_owned)
        .into()
    }

    /// Makes a backup that must succeed, and keeps its point under another name.
    pub fn create(&self, to: &str, more: &[&str]) -> Value {
        let mut arguments = self.create_args(to);
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        let made: Value = serde_json::from_str(&self.backup(arguments).with(0).out).unwrap();
        self.keep(&made);
        made
    }

    /// Keeps the point of a backup under another name.
    pub fn keep(&self, made: &Value) {
        let at = format!("pin={}", made["pin"].as_str().unwrap());
        let keep = format!("kept-{}", id(made));
        let control = self.file("gateway.sock");
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
    }

    pub fn pins(&self) -> Vec<String> {
        let control = self.file("gateway.sock");
        let list = epochgate(["log", "list", "vm", "--json", "--control", &control]).with(0);
        let list: Value = serde_json::from_str(&list.out).unwrap();
        let pins = list["status"]["pins"].as_array().unwrap();
        let pins = pins
            .iter()
            .map(|pin| pin["name"].as_str().unwrap().to_owned());
        pins.filter(|pin| pin.starts_with("backup-")).collect()
    }

    /// Restores a backup and compares each disk with what the gateway shows of its point.
    pub fn check(&self, place: &str, id: &str) {
        let to = self.file(&format!("restored-{id}"));
        self.backup(["restore", place, "--backup", id, "--to", &to])
            .with(0);
        for disk in DISKS {
            let past = self.file("past.raw");
            let _ = std::fs::remove_file(&past);
            let export = format!("vm/{disk}@pin=kept-{id}");
            let export = format!("nbd+unix:///{export}?socket={}", self.file("nbd.sock"));
            run_well("nbdcopy", [&export, &past]);
            run_well("cmp", [&format!("{to}/{disk}.raw"), &past]);
        }
        std::fs::remove_dir_all(to).unwrap();
    }

    pub fn client(&self, disk: &str) -> Client {
        Client::attach(&self.path("nbd.sock"), &format!("vm/{disk}"), false)
    }

    /// Gives most bytes of the disks a content; a part in the middle stays empty.
    pub fn fill(&self) {
        let mut random = Random::new("fill");
        for disk in DISKS {
            let mut client = self.client(disk);
            for at in (0..BYTES - 4096)
                .step_by(1 << 20)
                .filter(|at| at >> 20 != 20)
            {
                let request = Request::write(at, random.bytes(1 << 20));
                assert_eq!(client.ask(&request).unwrap().error, 0);
            }
            let end = Request::write(BYTES - 1000, random.bytes(1000));
            assert_eq!(client.ask(&end).unwrap().error, 0);
            assert_eq!(client.ask(&Request::new(FLUSH, 0, 0)).unwrap().error, 0);
        }
    }

    /// Writes, trims and zeroes on both disks until it is over.
    pub fn write(&self, seed: &str) {
        let mut random = Random::new(seed);
        let mut clients = DISKS.map(|disk| self.client(disk));
        while !self.over.load(Ordering::Relaxed) {
            let client = &mut clients[usize::from(random.one_in(2))];
            // Most of the disk stays as it is.
            let part = 4 << 20;
            let offset = random.within(0..part) + 16 * part * random.within(0..2);
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

    pub fn wait_for_writes(&self) {
        let enough = self.writes.load(Ordering::Relaxed) + 40;
        wait_until(
            "more writes",
            || (self.writes.load(Ordering::Relaxed) >= enough).then_some(()),
            String::new,
        );
    }

    /// Some backups while the disks are written; their names.
    pub fn chain(&self, place: &str, length: usize) -> Vec<Value> {
        self.over.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let _ends = Ends(&self.over);
            let writer = scope.spawn(|| self.write("writer"));
            let mut chain = Vec::new();
            for _ in 0..length {
                self.wait_for_writes();
                chain.push(self.create(place, &[]));
            }
            assert!(!writer.is_finished(), "the writer has ended too early");
            chain
        })
    }
}

/// Ends the writer, also when the test fails beside it.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub fn id(made: &Value) -> &str {
    made["backup"].as_str().unwrap()
}

/// All packs of a directory, and what they hold.
pub fn packs(place: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut packs = BTreeMap::new();
    let mut left = vec![place.join("data")];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension() == Some(OsStr::new("pack")) {
                packs.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
    }
    packs
}
