//! A service that people run: Debian's redis-server in a protected guest, its file on the guest's ext4 disk, and clients that keep their
//! connections and remember what they were promised. `epochgate bench database`, shortened; and it can fail: without the output gate it finds
//! losses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::command::{Ended, run, run_for};
use epochgate_tests::paths;
use epochgate_tests::site::vm_lock;
use serde_json::Value;

/// The guest without KVM on a machine that has other work boots twice in it.
const LIMIT_S: u32 = 300;

/// The bench with these options, on a guest that is up to date. It says by its exit code whether anything was lost.
fn bench(options: &[&str]) -> (Ended, Value) {
    let _alone = vm_lock();
    let workspace = paths::workspace();
    run_for(LIMIT_S, workspace.join("tests/guest/build-db.sh"), [""; 0]).with(0);
    let guest = workspace.join("target/guest-db");
    let qemu = paths::qemu();
    let mut args = vec!["bench", "database", "--json", "--seconds", "1"];
    args.extend(["--guest", guest.to_str().unwrap(), "--qemu", &qemu]);
    args.extend(options);
    let ended = run_for(LIMIT_S, paths::epochgate(), args);
    let summary = serde_json::from_str(&ended.out);
    let summary = summary.unwrap_or_else(|_| panic!("no figures:\n{}\n{}", ended.out, ended.err));
    (ended, summary)
}

#[test]
fn clients_of_a_database_notice_neither_failover_nor_switchover() {
    let (ended, found) = bench(&["--failovers", "1", "--switchovers", "1"]);
    let ended = ended.with(0);
    let kinds = ["failovers", "switchovers"].map(|kind| &found[kind]);
    for none in ["lost", "resets", "wrong"] {
        for counted in [&found, kinds[0], kinds[1]] {
            assert_eq!(counted[none], 0, "{found}\n{}", ended.err);
        }
    }
    for kind in kinds {
        assert_eq!(kind["count"], 1, "{found}");
        // Each connection had to go on at the new host.
        assert!(kind["acknowledged"].as_u64() >= Some(12), "{found}");
    }
    let number = |key: &str| found[key].as_u64().unwrap();
    assert!(number("acknowledged") > 50, "{found}");
    // All of them twice in the end: from the memory that went from host to host, and from the disk.
    assert_eq!(number("audited"), 2 * number("acknowledged"), "{found}");
}

/// Long epochs and kills late in them: much was promised since the last commit, and nothing was held.
#[test]
fn without_the_gate_the_clients_of_a_database_notice() {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (ended, found) = bench(&[
            "--failovers",
            "1",
            "--output",
            "pass",
            "--rhythm",
            "fixed",
            "--interval",
            "400",
            "--late",
        ]);
        let broken: u64 = ["lost", "resets"]
            .iter()
            .map(|key| found[key].as_u64().unwrap())
            .sum();
        assert_eq!(ended.code, i32::from(broken > 0), "{found}\n{}", ended.err);
        if broken > 0 {
            return;
        }
        seen.push(found);
    }
    panic!("nothing was lost, although nothing was held: {seen:?}");
}

#[test]
fn a_guest_that_is_not_there_is_named() {
    let args = ["bench", "database", "--guest", "/nowhere"];
    run(paths::epochgate(), args)
        .with(2)
        .says(&["/nowhere/vmlinuz", "make guest-db"]);
}
