//! Short runs of the benches of the gateway: what they report is whole, the data was checked, nothing is left behind.
//! They say nothing of speed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(args: &[&str], dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_epochgate"))
        .arg("bench")
        .args(args)
        .arg("--dir")
        .arg(dir)
        .output()
        .unwrap()
}

/// A run that must go well, and its JSON; its directory must be empty afterwards.
fn figures(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let output = bench(args, dir.path());
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn rows(figures: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let blocks = figures["profiles"].as_array().unwrap().iter();
    blocks.flat_map(|block| {
        let servers = block["servers"].as_array().unwrap().iter();
        servers.map(move |server| (block, server))
    })
}

#[test]
fn the_native_client_checks_what_it_reads_from_gateway_and_peers() {
    let figures = figures(&[
        "nbd",
        "--client=native",
        "--profiles=random-read,random-mixed,sequential-write",
        "--peers=nbdkit-file,nbdkit-memory,nbdkit-null",
        "--connections=1,4",
        "--repeats=1",
        "--seconds=0.2",
        "--size=64M",
        "--json",
    ]);
    let mut seen = 0;
    for (block, server) in rows(&figures) {
        seen += 1;
        assert!(server["iops"].as_f64().unwrap() > 0.0, "{server}");
        let reads = block["profile"] != "sequential-write";
        let stores = server["server"] != "nbdkit-null";
        let verified = server["verified_bytes"].as_u64().unwrap();
        assert_eq!(verified > 0, reads && stores, "{server}");
        assert!(server["against_best_peer"]["median"].is_f64(), "{server}");
        assert!(server["against_null"]["median"].is_f64(), "{server}");
        assert!(server["cpu_per_million"].is_f64(), "{server}");
        let drained = server["drain_s"].is_f64();
        assert!(drained == (block["profile"] != "random-read"), "{server}");
    }
    assert_eq!(seen, 3 * 2 * 5);
}

#[test]
fn fio_runs_every_profile_on_both_modes_and_the_bare_file() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("bars.svg");
    let markdown = dir.path().join("table.md");
    let figures = figures(&[
        "nbd",
        "--client=fio",
        "--peers=bare-file",
        "--connections=4",
        "--repeats=1",
        "--seconds=0.2",
        "--size=64M",
        "--json",
        "--svg",
        svg.to_str().unwrap(),
        "--markdown",
        markdown.to_str().unwrap(),
    ]);
    let profiles = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../fio-profiles"))
        .unwrap()
        .count();
    assert_eq!(rows(&figures).count(), profiles * 3);
    for (_, server) in rows(&figures) {
        assert!(server["iops"].as_f64().unwrap() > 0.0, "{server}");
    }
    let svg = std::fs::read_to_string(svg).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("epochgate-async"));
    let markdown = std::fs::read_to_string(markdown).unwrap();
    assert!(markdown.contains("| **epochgate-async** |"), "{markdown}");
}

#[test]
fn every_peer_takes_part() {
    let figures = figures(&[
        "nbd",
        "--profiles=random-read",
        "--connections=1",
        "--repeats=1",
        "--seconds=0.1",
        "--size=64M",
        "--json",
    ]);
    // The bare file is for fio only.
    assert_eq!(rows(&figures).count(), 8 + 9);
    for (_, server) in rows(&figures) {
        assert!(server["iops"].as_f64().unwrap() > 0.0, "{server}");
    }
}

#[test]
fn a_peer_that_is_not_installed_is_named_with_its_package() {
    let output = Command::new(env!("CARGO_BIN_EXE_epochgate"))
        .args(["bench", "nbd", "--peers=nbd-server", "--client=native"])
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("Debian package nbd-server"), "{said}");
}

#[test]
fn wrong_names_are_usage_errors() {
    for wrong in ["--peers=nbdkit", "--modes=fast", "--profiles=none"] {
        let output = bench(&["nbd", wrong], Path::new("/nonexistent"));
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("there are "), "{said}");
    }
}

#[test]
fn a_commit_is_timed_against_fio_in_every_pattern() {
    let figures = figures(&["commit", "--size=64M", "--repeats=1", "--json"]);
    let patterns = figures["patterns"].as_array().unwrap();
    assert_eq!(patterns.len(), 3);
    for pattern in patterns {
        let turn = &pattern["turns"][0];
        let guest = turn["guest_bytes"].as_u64().unwrap();
        let epoch = turn["epoch_bytes"].as_u64().unwrap();
        let written = turn["written_bytes"].as_u64().unwrap();
        assert_eq!(guest, 64 << 20, "{pattern}");
        assert!(turn["commit_s"].as_f64().unwrap() > 0.0, "{pattern}");
        assert!(turn["fio_s"].as_f64().unwrap() > 0.0, "{pattern}");
        // Every byte of the epoch goes to the log and to the image.
        assert!(written >= 2 * epoch, "{pattern}");
        if pattern["pattern"] == "overwrite" {
            assert!(epoch <= guest / 4, "{pattern}");
        } else {
            assert_eq!(epoch, guest, "{pattern}");
        }
    }
}

#[test]
fn the_memory_bench_says_how_much_was_used() {
    let figures = figures(&[
        "memory",
        "--budget=32M",
        "--size=64M",
        "--epochs=20",
        "--json",
    ]);
    let it = &figures["figures"];
    assert_eq!(figures["within_limit"], true, "{it}");
    assert_eq!(it["limit"], (32 + 64) << 20, "{it}");
    assert!(it["epochs"].as_u64().unwrap() >= 20, "{it}");
    assert!(it["peak_rss"].as_u64().unwrap() > 1 << 20, "{it}");
    assert!(
        it["beside_latency_us"]["p99"].as_f64().unwrap() > 0.0,
        "{it}"
    );
}
