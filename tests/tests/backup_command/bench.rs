//! The stand of these tests: a gateway with a history, disks that are written all the time, and `epochgate backup` beside it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use epochgate_tests::busy_group::{BusyGroup, DISKS};
use epochgate_tests::command::{Ended, run_well};
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

/// Of each disk: more than one region of a backup, and no whole number of blocks.
const BYTES: u64 = (72 << 20) + 4096;

/// It, and its gateway.
pub struct Bench {
    pub gateway: Process,
    pub group: BusyGroup,
    /// Variables of the commands, for the S3 server.
    pub environment: Vec<(String, String)>,
}

impl Bench {
    pub fn new() -> Self {
        let group = BusyGroup::new(BYTES);
        Self {
            gateway: group.start(),
            group,
            environment: Vec::new(),
        }
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
            &self.group.control(),
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
        let pin = made["pin"].as_str().unwrap();
        self.group.keep(pin, &format!("kept-{}", id(made)));
    }

    /// The pins of backups.
    pub fn pins(&self) -> Vec<String> {
        let mut pins = self.group.pins();
        pins.retain(|pin| pin.starts_with("backup-"));
        pins
    }

    /// Begins a backup, and waits until it has stored something.
    pub fn begin(&self, place: &Path) -> Process {
        let create = self.create_args(&place.display().to_string());
        let arguments = [vec!["backup".to_owned()], create].concat();
        let begun = Process::epochgate("create", self.group.dir(), &arguments, &[]);
        wait_until(
            "a pack",
            || (!packs(place).is_empty()).then_some(()),
            || begun.log_tail(),
        );
        begun
    }

    /// Restores a backup and compares each disk with what the gateway shows of its point.
    pub fn check(&self, place: &str, id: &str) {
        let to = self.group.file(&format!("restored-{id}"));
        self.backup(["restore", place, "--backup", id, "--to", &to])
            .with(0);
        for disk in DISKS {
            let past = self.group.file("past.raw");
            let _ = std::fs::remove_file(&past);
            let export = self.group.uri(&format!("vm/{disk}@pin=kept-{id}"));
            run_well("nbdcopy", [&export, &past]);
            run_well("cmp", [&format!("{to}/{disk}.raw"), &past]);
        }
        std::fs::remove_dir_all(to).unwrap();
    }

    /// Some backups while the disks are written; their names.
    pub fn chain(&self, place: &str, length: usize) -> Vec<Value> {
        self.group.while_written(|| {
            let one = |_| {
                self.group.wait_for_writes();
                self.create(place, &[])
            };
            (0..length).map(one).collect()
        })
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
