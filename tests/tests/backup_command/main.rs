//! `epochgate backup` with a real gateway whose disks are written all the time, to a directory and to a real S3 server: what is restored is
//! what the disks were at the pin, byte by byte, whatever happened on the way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use epochgate_tests::command::{Ended, epochgate, run_for, run_well};
use epochgate_tests::nbd::{Client, FLUSH, Request, TRIM, ZEROES};
use epochgate_tests::object_server::ObjectServer;
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::random::Random;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

/// Of each disk: more than one region of a backup, and no whole number of blocks.
const BYTES: u64 = (72 << 20) + 4096;
const DISKS: [&str; 2] = ["root", "data"];

struct Bench {
    dir: tempfile::TempDir,
    gateway: Process,
    /// Writes that were answered.
    writes: AtomicU64,
    over: AtomicBool,
    /// Variables of the commands, for the S3 server.
    environment: Vec<(String, String)>,
}

impl Bench {
    fn new() -> Self {
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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `epochgate backup`, with what follows.
    fn backup<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", "300"])
            .arg(paths::epochgate())
            .arg("backup")
            .args(arguments)
            .envs(self.environment.iter().cloned());
        Ended::from(command.output().unwrap())
    }

    fn create_args(&self, to: &str) -> Vec<String> {
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
    fn create(&self, to: &str, more: &[&str]) -> Value {
        let mut arguments = self.create_args(to);
        arguments.extend(more.iter().map(|more| (*more).to_owned()));
        let made: Value = serde_json::from_str(&self.backup(arguments).with(0).out).unwrap();
        self.keep(&made);
        made
    }

    /// Keeps the point of a backup under another name.
    fn keep(&self, made: &Value) {
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

    fn pins(&self) -> Vec<String> {
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
    fn check(&self, place: &str, id: &str) {
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

    fn client(&self, disk: &str) -> Client {
        Client::attach(&self.path("nbd.sock"), &format!("vm/{disk}"), false)
    }

    /// Gives most bytes of the disks a content; a part in the middle stays empty.
    fn fill(&self) {
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
    fn write(&self, seed: &str) {
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

    fn wait_for_writes(&self) {
        let enough = self.writes.load(Ordering::Relaxed) + 40;
        wait_until(
            "more writes",
            || (self.writes.load(Ordering::Relaxed) >= enough).then_some(()),
            String::new,
        );
    }

    /// Some backups while the disks are written; their names.
    fn chain(&self, place: &str, length: usize) -> Vec<Value> {
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
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn id(made: &Value) -> &str {
    made["backup"].as_str().unwrap()
}

/// All packs of a directory, and what they hold.
fn packs(place: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
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

/// A chain of backups, each restored; then some are removed.
fn a_chain(bench: &Bench, place: &str) {
    bench.fill();
    let chain = bench.chain(place, 4);
    for (before, made) in chain.iter().zip(&chain[1..]) {
        assert_eq!(made["parent"], before["backup"]);
        assert_eq!(made["compared"], Value::Null);
    }
    let stored: Vec<u64> = chain
        .iter()
        .map(|made| made["stored"].as_u64().unwrap())
        .collect();
    assert!(
        stored[1..].iter().all(|more| more * 2 < stored[0]),
        "increments are no smaller than all: {stored:?}"
    );
    let last = chain.last().unwrap();
    assert_eq!(bench.pins(), [last["pin"].as_str().unwrap()]);
    let list: Value =
        serde_json::from_str(&bench.backup(["list", place, "--json"]).with(0).out).unwrap();
    let listed: Vec<&Value> = list["backups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["backup"])
        .collect();
    assert_eq!(
        listed,
        chain.iter().map(|made| &made["backup"]).collect::<Vec<_>>()
    );
    let verified = bench.backup(["verify", place, "--json"]).with(0);
    let verified: Value = serde_json::from_str(&verified.out).unwrap();
    assert_eq!(
        (&verified["backups"], &verified["problems"]),
        (&4.into(), &serde_json::json!([]))
    );
    for made in &chain {
        bench.check(place, id(made));
    }
    // What is left can be restored, and nothing is left over.
    bench
        .backup(["remove", place, "--backup", id(&chain[1])])
        .with(0);
    let dry = bench
        .backup(["prune", place, "--keep-last", "2", "--dry-run", "--json"])
        .with(0);
    let pruned = bench
        .backup(["prune", place, "--keep-last", "2", "--json"])
        .with(0);
    assert_eq!(dry.out, pruned.out);
    let pruned: Value = serde_json::from_str(&pruned.out).unwrap();
    assert_eq!(pruned["removed"], serde_json::json!([id(&chain[0])]));
    bench.backup(["verify", place]).with(0);
    for made in &chain[2..] {
        bench.check(place, id(made));
    }
    let gone = bench.backup([
        "restore",
        place,
        "--backup",
        id(&chain[0]),
        "--to",
        &bench.file("x"),
    ]);
    gone.with(2).says(&["there is no backup"]);
}

#[test]
fn a_chain_in_a_directory_restores_each_of_its_points() {
    let mut bench = Bench::new();
    a_chain(&bench, &bench.file("backups"));
    bench.gateway.stop();
}

#[test]
fn a_chain_in_a_bucket_restores_each_of_its_points() {
    let mut bench = Bench::new();
    let server = ObjectServer::start(bench.dir.path());
    server.make_bucket("bucket");
    bench.environment = server.environment();
    a_chain(&bench, "s3://bucket/some/where");
    bench.gateway.stop();
}

#[test]
fn a_backup_that_is_killed_goes_on_with_what_it_has_stored() {
    let mut bench = Bench::new();
    let place = bench.path("backups");
    let to = place.display().to_string();
    bench.fill();
    let arguments = [vec!["backup".to_owned()], bench.create_args(&to)].concat();
    let mut first = Process::epochgate("create", bench.dir.path(), &arguments, &[]);
    wait_until(
        "a pack",
        || (!packs(&place).is_empty()).then_some(()),
        String::new,
    );
    first.kill();
    let before = packs(&place);
    let list = bench.backup(["list", &to]).with(0);
    assert!(
        list.out.contains("there is no backup"),
        "it was complete already: {}",
        list.out
    );
    let pins = bench.pins();
    assert_eq!(pins.len(), 1);
    // The disks go on meanwhile; the backup stays that of its point.
    let mut client = bench.client("root");
    assert_eq!(
        client
            .ask(&Request::write(0, vec![9; 1 << 20]))
            .unwrap()
            .error,
        0
    );
    let made = bench.create(&to, &[]);
    assert_eq!(made["resumed"], true);
    assert_eq!(made["pin"], pins[0].as_str());
    assert_eq!(bench.pins(), pins);
    assert!(made["reused"].as_u64().unwrap() > 0);
    assert!(
        made["read"].as_u64().unwrap() < made["size"].as_u64().unwrap() - (10 << 20),
        "{made}"
    );
    let after = packs(&place);
    assert!(
        before.iter().all(|(path, bytes)| after[path] == *bytes),
        "a pack was written again"
    );
    bench.backup(["verify", &to]).with(0);
    bench.check(&to, id(&made));
    bench.gateway.stop();
}

#[test]
fn a_backup_that_is_told_to_stop_says_how_it_goes_on() {
    let mut bench = Bench::new();
    let place = bench.path("backups");
    let to = place.display().to_string();
    bench.fill();
    let arguments = [vec!["backup".to_owned()], bench.create_args(&to)].concat();
    let mut first = Process::epochgate("create", bench.dir.path(), &arguments, &[]);
    wait_until(
        "a pack",
        || (!packs(&place).is_empty()).then_some(()),
        String::new,
    );
    first.signal(rustix::process::Signal::TERM);
    assert_eq!(first.wait().code(), Some(1));
    assert!(
        first.log().contains("run the same command again"),
        "{}",
        first.log()
    );
    let made = bench.create(&to, &[]);
    assert_eq!(made["resumed"], true);
    bench.check(&to, id(&made));
    bench.gateway.stop();
}

#[test]
fn without_its_pin_all_is_read_but_only_what_is_new_is_stored() {
    let mut bench = Bench::new();
    let to = bench.file("backups");
    bench.fill();
    let first = bench.create(&to, &[]);
    let control = bench.file("gateway.sock");
    epochgate([
        "log",
        "unpin",
        "vm",
        first["pin"].as_str().unwrap(),
        "--control",
        &control,
    ])
    .with(0);
    let mut client = bench.client("data");
    assert_eq!(
        client
            .ask(&Request::write(5000, vec![9; 100]))
            .unwrap()
            .error,
        0
    );
    assert_eq!(client.ask(&Request::new(FLUSH, 0, 0)).unwrap().error, 0);
    let second = bench.create(&to, &[]);
    assert!(
        second["compared"]
            .as_str()
            .unwrap()
            .contains("no longer keeps"),
        "{second}"
    );
    assert!(second["read"].as_u64().unwrap() > 100 << 20, "{second}");
    assert!(second["stored"].as_u64().unwrap() < 1 << 20, "{second}");
    bench.check(&to, id(&second));
    let full = bench.create(&to, &["--full", "--name", "all"]);
    assert_eq!((id(&full), &full["parent"]), ("all", &Value::Null));
    assert!(full["stored"].as_u64().unwrap() > 100 << 20, "{full}");
    bench.check(&to, "all");
    bench.gateway.stop();
}

#[test]
fn damage_is_found_and_not_restored() {
    let mut bench = Bench::new();
    let place = bench.path("backups");
    let to = place.display().to_string();
    bench.fill();
    // In order, so that the first pack is of the first disk.
    let made = bench.create(&to, &["--jobs", "1"]);
    let all = packs(&place);
    let restore = |dir: &str| {
        bench.backup([
            "restore",
            &to,
            "--backup",
            "latest",
            "--to",
            &bench.file(dir),
        ])
    };
    let mut random = Random::new("damage");
    // A byte of each pack, wherever it is.
    for (path, bytes) in &all {
        let mut damaged = bytes.clone();
        let at = usize::try_from(random.within(0..bytes.len() as u64)).unwrap();
        damaged[at] ^= 1;
        std::fs::write(path, &damaged).unwrap();
        let found = bench.backup(["verify", &to]).with(1);
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            found.out.contains(name) && found.out.contains(id(&made)),
            "byte {at} of {name}: {}",
            found.out
        );
        std::fs::write(path, bytes).unwrap();
    }
    bench.backup(["verify", &to]).with(0);
    let (path, bytes) = all.iter().next().unwrap();
    let mut damaged = bytes.clone();
    damaged[1000] ^= 1;
    std::fs::write(path, &damaged).unwrap();
    let refused = restore("damaged").with(1);
    refused.says(&["is damaged"]);
    assert!(!bench.path("damaged/root.raw").exists());
    std::fs::remove_file(path).unwrap();
    let found = bench.backup(["verify", &to]).with(1);
    assert!(found.out.contains("missing"), "{}", found.out);
    restore("missing").with(1).says(&["there is no data/vm/"]);
    std::fs::write(path, bytes).unwrap();
    // What an interrupted restore left is no hindrance, an image is.
    restore("damaged").with(0);
    restore("damaged").with(2).says(&["there already"]);
    let manifest = place.join(format!("backups/vm/{}.json", id(&made)));
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("\"root\"", "\"../x\"")).unwrap();
    restore("manifest").with(1).says(&["checksum"]);
    bench.backup(["verify", &to]).with(1);
    bench
        .backup(["prune", &to, "--keep-last", "1"])
        .with(1)
        .says(&["Nothing was removed"]);
    bench.backup(["remove", &to, "--backup", id(&made)]).with(0);
    assert!(packs(&place).is_empty());
    bench.gateway.stop();
}

#[test]
fn a_full_disk_is_said_and_a_later_run_finishes() {
    let mut bench = Bench::new();
    let place = bench.path("small");
    std::fs::create_dir(&place).unwrap();
    let to = place.display().to_string();
    // A small file system that only this process and what joins it see; it goes with the process.
    let mut holder = Command::new("unshare");
    holder
        .args(["--mount", "--map-root-user", "sh", "-c"])
        .arg(r#"mount -t tmpfs -o size=40m tmpfs "$1" && exec sleep 10000"#)
        .args(["sh", &to]);
    let holder = Process::start("holder", bench.dir.path(), holder);
    let pid = holder.pid().to_string();
    wait_until(
        "the small file system",
        || {
            let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).ok()?;
            mounts.contains(&to).then_some(())
        },
        || holder.log_tail(),
    );
    let inside = |arguments: &[&str]| {
        let join = [
            "--user",
            "--mount",
            "--preserve-credentials",
            "--target",
            &pid,
            "--",
        ];
        run_for(300, "nsenter", join.iter().chain(arguments))
    };
    let binary = paths::epochgate().to_str().unwrap();
    let create = bench.create_args(&to);
    let mut command = vec![binary, "backup"];
    command.extend(create.iter().map(String::as_str));
    bench.fill();
    inside(&command).with(1).says(&["is full; make room there"]);
    let list = inside(&[binary, "backup", "list", &to]).with(0);
    assert!(list.out.contains("there is no backup"), "{}", list.out);
    inside(&["mount", "-o", "remount,size=400m", &to]).with(0);
    let made: Value = serde_json::from_str(&inside(&command).with(0).out).unwrap();
    assert_eq!(made["resumed"], true);
    inside(&[binary, "backup", "verify", &to]).with(0);
    inside(&["cp", "-r", &to, &bench.file("copy")]).with(0);
    bench.keep(&made);
    bench.check(&bench.file("copy"), id(&made));
    bench.gateway.stop();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut bench = Bench::new();
    let to = bench.file("backups");
    let control = bench.file("gateway.sock");
    let create = |group: &str, place: &str| {
        bench.backup(["create", group, "--to", place, "--control", &control])
    };
    create("other", &to).with(2);
    create("../x", &to)
        .with(2)
        .says(&["can't be the name of a group"]);
    create("vm", "https://host/x").with(2);
    bench
        .backup(["list", "/no/such/directory"])
        .with(2)
        .says(&["there is no such directory"]);
    bench.backup(["prune", &to]).with(2);
    bench.backup(["restore", &to, "--to", "x"]).with(2);
    bench.create(&to, &["--name", "one"]);
    let args = bench.create_args(&to);
    bench
        .backup(args.iter().map(String::as_str).chain(["--name", "one"]))
        .with(2)
        .says(&["already"]);
    bench
        .backup([
            "restore",
            &to,
            "--time",
            "2001-01-01T00:00:00Z",
            "--to",
            "x",
        ])
        .with(2)
        .says(&["that old"]);
    bench
        .backup([
            "restore", &to, "--backup", "one", "--disk", "none", "--to", "x",
        ])
        .with(2)
        .says(&["no disk none"]);
    // One at a time.
    let lock = std::fs::File::open(bench.path("backups/state/vm/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    bench
        .backup(bench.create_args(&to))
        .with(1)
        .says(&["another process works on these backups"]);
    drop(lock);
    bench.create(&to, &[]);
    bench.gateway.stop();
}
