//! `epochgate backup` with a real gateway whose disks are written all the time, to a directory and to a real S3 server: what is restored is
//! what the disks were at the pin, byte by byte, whatever happened on the way.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bench;

use std::process::Command;

use epochgate_tests::busy_group::do_well;
use epochgate_tests::command::run_for;
use epochgate_tests::nbd::{FLUSH, Request};
use epochgate_tests::object_server::ObjectServer;
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::random::Random;
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

use bench::{Bench, id, packs};

/// A chain of backups, each restored; then some are removed.
fn a_chain(bench: &Bench, place: &str) {
    bench.group.fill();
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
        &bench.group.file("x"),
    ]);
    gone.with(2).says(&["there is no backup"]);
}

#[test]
fn a_chain_in_a_directory_restores_each_of_its_points() {
    let mut bench = Bench::new();
    a_chain(&bench, &bench.group.file("backups"));
    bench.gateway.stop();
}

#[test]
fn a_chain_in_a_bucket_restores_each_of_its_points() {
    let mut bench = Bench::new();
    let server = ObjectServer::start(bench.group.dir());
    server.make_bucket("bucket");
    bench.environment = server.environment();
    a_chain(&bench, "s3://bucket/some/where");
    bench.gateway.stop();
}

#[test]
fn a_backup_that_is_killed_goes_on_with_what_it_has_stored() {
    let mut bench = Bench::new();
    let place = bench.group.path("backups");
    let to = place.display().to_string();
    bench.group.fill();
    let mut first = bench.begin(&place);
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
    let mut client = bench.group.client("root");
    do_well(&mut client, &Request::write(0, vec![9; 1 << 20]));
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
    let place = bench.group.path("backups");
    let to = place.display().to_string();
    bench.group.fill();
    let mut first = bench.begin(&place);
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
    let to = bench.group.file("backups");
    bench.group.fill();
    let first = bench.create(&to, &[]);
    bench.group.unpin(first["pin"].as_str().unwrap());
    let mut client = bench.group.client("data");
    do_well(&mut client, &Request::write(5000, vec![9; 100]));
    do_well(&mut client, &Request::new(FLUSH, 0, 0));
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
    let place = bench.group.path("backups");
    let to = place.display().to_string();
    bench.group.fill();
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
            &bench.group.file(dir),
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
    assert!(!bench.group.path("damaged/root.raw").exists());
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
    let place = bench.group.path("small");
    std::fs::create_dir(&place).unwrap();
    let to = place.display().to_string();
    // A small file system that only this process and what joins it see; it goes with the process.
    let mut holder = Command::new("unshare");
    holder
        .args(["--mount", "--map-root-user", "sh", "-c"])
        .arg(r#"mount -t tmpfs -o size=40m tmpfs "$1" && exec sleep 10000"#)
        .args(["sh", &to]);
    let holder = Process::start("holder", bench.group.dir(), holder);
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
    bench.group.fill();
    inside(&command).with(1).says(&["is full; make room there"]);
    let list = inside(&[binary, "backup", "list", &to]).with(0);
    assert!(list.out.contains("there is no backup"), "{}", list.out);
    inside(&["mount", "-o", "remount,size=400m", &to]).with(0);
    let made: Value = serde_json::from_str(&inside(&command).with(0).out).unwrap();
    assert_eq!(made["resumed"], true);
    inside(&[binary, "backup", "verify", &to]).with(0);
    inside(&["cp", "-r", &to, &bench.group.file("copy")]).with(0);
    bench.keep(&made);
    bench.check(&bench.group.file("copy"), id(&made));
    bench.gateway.stop();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut bench = Bench::new();
    let to = bench.group.file("backups");
    let control = bench.group.control();
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
    let lock = std::fs::File::open(bench.group.path("backups/state/vm/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    bench
        .backup(bench.create_args(&to))
        .with(1)
        .says(&["another process works on these backups"]);
    drop(lock);
    bench.create(&to, &[]);
    bench.gateway.stop();
}
