//! What a user can get wrong in configuration, images and logs: each gives one clear message that says what to do, exit code 2,
//! and changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use epochgate_tests::command::{Ended, epochgate, run_well};
use epochgate_tests::process::Process;
use epochgate_tests::site::{DISK_BYTES, gateway_toml, make_image, tempdir, wait_for_socket};
use epochgate_tests::snapshot;

/// Images and a gateway's configuration, and nothing that runs.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempdir();
        for disk in ["root", "data"] {
            make_image(&dir.path().join(format!("{disk}.img")), DISK_BYTES);
        }
        let bench = Self { dir };
        bench.write("gateway.toml", &gateway_toml(bench.path()));
        bench
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn file(&self, name: &str) -> String {
        self.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    /// A second configuration: the first one with texts replaced.
    fn derive(&self, name: &str, replacements: &[(&str, &str)]) {
        let mut text = gateway_toml(self.path());
        for (old, new) in replacements {
            assert!(text.contains(old), "`{old}` is not in\n{text}");
            text = text.replace(old, new);
        }
        self.write(name, &text);
    }

    fn start_gateway(&self) -> Process {
        let config = self.file("gateway.toml");
        let mut gateway = Process::epochgate(
            "gateway",
            self.path(),
            ["gateway", "--config", &config],
            &[],
        );
        wait_for_socket(&self.path().join("gateway.sock"), &mut gateway);
        gateway
    }

    /// Starts a gateway that must refuse, and have changed nothing.
    #[track_caller]
    fn refused(&self, config: &str) -> Ended {
        let before = snapshot::of(self.path());
        let ended = epochgate(["gateway", "--config", &self.file(config)]).with(2);
        assert_eq!(snapshot::of(self.path()), before, "something was changed");
        ended
    }
}

#[test]
fn a_missing_image_is_named_with_the_way_to_make_it() {
    let bench = Bench::new();
    std::fs::remove_file(bench.path().join("data.img")).unwrap();
    let image = bench.file("data.img");
    bench.refused("gateway.toml").says(&[
        "group 'vm1', disk 'data'",
        &image,
        "does not exist",
        "truncate -s",
    ]);

    let socket = bench.file("nbd.sock");
    epochgate(["serve", &image, "--unix", &socket])
        .with(2)
        .says(&[&image, "truncate -s"]);
}

#[test]
fn an_image_of_another_size_than_the_log_knows_is_refused() {
    let bench = Bench::new();
    bench.start_gateway().stop();
    make_image(&bench.path().join("root.img"), 2 * DISK_BYTES);
    bench.refused("gateway.toml").says(&[
        "disk 'root'",
        "an image of 8 MiB, this one has 16 MiB",
        "epochgate log rebind",
    ]);
    make_image(&bench.path().join("root.img"), DISK_BYTES);
    bench.start_gateway().stop();
}

#[test]
fn a_copied_image_is_accepted_only_on_purpose() {
    let bench = Bench::new();
    bench.start_gateway().stop();
    std::fs::rename(bench.path().join("root.img"), bench.path().join("old.img")).unwrap();
    std::fs::copy(bench.path().join("old.img"), bench.path().join("root.img")).unwrap();
    bench.refused("gateway.toml").says(&[
        "disk 'root'",
        "another image file",
        "epochgate log rebind",
    ]);
    epochgate([
        "log",
        "rebind",
        "--config",
        &bench.file("gateway.toml"),
        "vm1",
    ])
    .with(0);
    bench.start_gateway().stop();
}

#[test]
fn the_log_of_another_group_is_refused() {
    let bench = Bench::new();
    bench.start_gateway().stop();
    bench.derive("other.toml", &[("name = \"vm1\"", "name = \"vm2\"")]);
    bench.refused("other.toml").says(&[
        "belongs to group 'vm1', not to 'vm2'",
        "give each group a directory of its own",
    ]);
}

#[test]
fn a_second_gateway_gets_neither_log_nor_images() {
    let bench = Bench::new();
    let mut first = bench.start_gateway();
    let pid = first.pid().to_string();
    for disk in ["root", "data"] {
        make_image(&bench.path().join(format!("{disk}-2.img")), DISK_BYTES);
    }
    let sockets = [
        ("gateway.sock", "gateway-2.sock"),
        ("nbd.sock", "nbd-2.sock"),
    ];

    let other_images = [("root.img", "root-2.img"), ("data.img", "data-2.img")];
    bench.derive("same-log.toml", &[sockets, other_images].concat());
    bench.refused("same-log.toml").says(&[
        "vm1.epochlog is in use",
        &pid,
        "stop that gateway first",
    ]);

    bench.derive(
        "same-image.toml",
        &[&sockets[..], &[("vm1.epochlog", "vm1-2.epochlog")]].concat(),
    );
    bench
        .refused("same-image.toml")
        .says(&["root.img is in use by another server"]);
    assert!(!first.ended());

    let other_log = [("vm1.epochlog", "vm1-3.epochlog")];
    bench.derive(
        "same-socket.toml",
        &[&other_images[..], &other_log].concat(),
    );
    epochgate(["gateway", "--config", &bench.file("same-socket.toml")])
        .with(2)
        .says(&["another server is listening on", "nbd.sock"]);
    let socket = format!("nbd+unix:///vm1/root?socket={}", bench.file("nbd.sock"));
    run_well("nbdinfo", ["--size", &socket]);
    first.stop();
}

/// The example of a role, with one line put where its first table ends.
fn example_with(role: &str, line: &str) -> String {
    let path = epochgate_tests::paths::workspace()
        .join("docs/examples")
        .join(format!("{role}.toml"));
    format!("{line}\n{}", std::fs::read_to_string(path).unwrap())
}

#[test]
fn a_wrong_key_is_named_with_what_is_allowed() {
    let dir = tempdir();
    let config = dir.path().join("c.toml").display().to_string();
    for (command, role, allowed) in [
        (
            "gateway",
            "gateway",
            ["control", "listen", "insecure", "group", "export"],
        ),
        (
            "protect",
            "vm",
            [
                "gateway",
                "nbd",
                "standby",
                "interval_ms",
                "on_standby_loss",
            ],
        ),
        (
            "standby",
            "standby",
            ["gateway", "nbd", "listen", "suspicion_ms", "runtime_dir"],
        ),
    ] {
        std::fs::write(&config, example_with(role, "intervall = 25")).unwrap();
        for check in [&["--check"][..], &[]] {
            let ended = epochgate([&[command, "--config", &config], check].concat()).with(2);
            ended.says(&[&config, "intervall", "line 1"]);
            ended.says(&allowed);
        }
        std::fs::write(&config, example_with(role, "")).unwrap();
        epochgate([command, "--config", &config, "--check"]).with(0);
    }
}

#[test]
fn a_wrong_value_is_named_with_what_is_allowed() {
    let dir = tempdir();
    let config = dir.path().join("c.toml").display().to_string();
    let example = |role: &str| example_with(role, "");
    for (command, text, words) in [
        (
            "gateway",
            example("gateway").replace("mode = \"async\"", "mode = \"fast\""),
            &["fast", "sync", "async"][..],
        ),
        (
            "protect",
            example("vm").replace("interval_ms = 25", "interval_ms = 0"),
            &["interval_ms = 0", "1 to 60000"],
        ),
        (
            "protect",
            example("vm").replace("suspicion_ms = 100", "suspicion_ms = 60"),
            &["suspicion_ms = 60", "heartbeat_ms = 25"],
        ),
        (
            "protect",
            example("vm").replace("accel = \"auto\"", "accel = \"hvf\""),
            &["hvf", "auto", "tcg", "kvm"],
        ),
        (
            "standby",
            example("standby").replace("unix:/run/epochgate/vm1.standby", "host-b:7070"),
            &["host-b:7070", "unix:/path", "tcp:127.0.0.1"],
        ),
    ] {
        std::fs::write(&config, text).unwrap();
        let ended = epochgate([command, "--config", &config, "--check"]).with(2);
        ended.says(words);
    }
    let missing = dir.path().join("missing.toml").display().to_string();
    epochgate(["gateway", "--config", &missing])
        .with(2)
        .says(&[&missing, "can't be read"]);
}

#[test]
fn what_others_can_reach_must_be_asked_for() {
    let dir = tempdir();
    let config = dir.path().join("c.toml").display().to_string();
    let local = "tcp:127.0.0.1:10809";
    let exposed = [
        (
            "gateway",
            example_with("gateway", "").replace(local, "tcp:0.0.0.0:10809"),
        ),
        (
            "gateway",
            example_with("gateway", "").replace(local, "tcp:[::]:10809"),
        ),
        (
            "protect",
            example_with("vm", "").replace("unix:/run/epochgate/vm1.standby", "tcp:192.0.2.1:7070"),
        ),
        (
            "standby",
            example_with("standby", "").replace("unix:/run/epochgate/vm1.standby", "tcp:[::]:7070"),
        ),
    ];
    for (command, text) in exposed {
        std::fs::write(&config, &text).unwrap();
        let ended = epochgate([command, "--config", &config, "--check"]).with(2);
        ended.says(&["can be reached from other machines", "insecure"]);
        std::fs::write(&config, format!("insecure = true\n{text}")).unwrap();
        epochgate([command, "--config", &config, "--check"]).with(0);
    }
    let image = dir.path().join("disk.img");
    make_image(&image, DISK_BYTES);
    let image = image.display().to_string();
    epochgate(["serve", &image, "--tcp", "0.0.0.0:0"])
        .with(2)
        .says(&["0.0.0.0", "can be reached from other machines", "insecure"]);
}

#[test]
fn what_is_no_log_is_the_users_mistake() {
    let dir = tempdir();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    std::fs::write(dir.path().join("file"), "text").unwrap();
    let before = snapshot::of(dir.path());
    for command in ["inspect", "verify"] {
        for name in ["empty", "file", "missing"] {
            epochgate(["log", command, &path(name)])
                .with(2)
                .says(&[&path(name), "holds no epoch log"]);
        }
    }
    assert_eq!(snapshot::of(dir.path()), before);
}

/// An epoch is committed and not applied, and its data is damaged: nothing may be made of it, and the place is named.
#[test]
fn a_flipped_bit_in_committed_data_is_found_and_never_served() {
    let dir = tempdir();
    let image = dir.path().join("disk.img");
    make_image(&image, DISK_BYTES);
    let image = image.display().to_string();
    let socket = dir.path().join("nbd.sock");
    let serve = [
        "serve",
        &image,
        "--async",
        "--unix",
        &socket.display().to_string(),
    ];
    let crash = [("EPOCHGATE_FAILPOINT", "gateway-after-commit-record")];
    let mut gateway = Process::epochgate("gateway", dir.path(), serve, &crash);
    wait_for_socket(&socket, &mut gateway);
    let url = format!("nbd+unix:///?socket={}", socket.display());
    // The connection breaks with the gateway, which is after the commit.
    epochgate_tests::command::run(
        "qemu-io",
        [
            "-f",
            "raw",
            "-c",
            "write -P 0x5a 64k 128k",
            "-c",
            "flush",
            &url,
        ],
    );
    gateway.wait_for_crash();

    let log = format!("{image}.epochlog");
    epochgate(["log", "verify", &log]).with(0);
    let (segment, number, at) = flip_a_bit_in(Path::new(&log), &[0x5a; 4096]);
    let before = snapshot::of(dir.path());
    let verdict = epochgate(["log", "verify", &log]).with(1);
    assert!(
        verdict.out.contains(&format!("segment {number} at byte ")),
        "{}",
        verdict.out
    );
    let json = epochgate(["log", "verify", "--json", &log]).with(1);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    let damage = &json["damages"][0];
    assert_eq!(damage["segment"], number, "{json}");
    assert_eq!(damage["what"], "data-checksum", "{json}");
    let named = damage["offset"].as_u64().unwrap();
    assert!(
        named <= at && at < named + (256 << 10),
        "byte {at} of {} was changed, {json}",
        segment.display()
    );
    let refused = epochgate(serve).with(1);
    refused.says(&[
        &format!("damaged in segment {number}"),
        &format!("`epochgate log verify {log}`"),
        "`epochgate log recover`",
    ]);

    // What is committed is given up by an explicit command only, and only as far as it has to be.
    let recover = ["log", "recover", &log, "--to"];
    let ask = |more: &[&str]| epochgate(recover.iter().chain(more));
    ask(&["1", "--yes"]).with(1).says(&["0 is the last epoch"]);
    ask(&["0"]).with(1).says(&["nothing was changed", "--yes"]);
    let plan = ask(&["0", "--dry-run"]).with(0);
    assert!(plan.out.contains("lost: epoch 1\n"), "{}", plan.out);
    assert_eq!(snapshot::of(dir.path()), before, "something was changed");
    let done = ask(&["0", "--yes", "--json"]).with(0);
    let done: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&done["done"], &done["lost"]), (&true.into(), &1.into()));
    epochgate(["log", "verify", &log]).with(0);
    let aside = format!("{}.damaged", segment.display());
    assert!(Path::new(&aside).is_file(), "{done}");
    let mut gateway = Process::epochgate("recovered", dir.path(), serve, &[]);
    wait_for_socket(&socket, &mut gateway);
    let read = ["-f", "raw", "-c", "read -P 0 64k 128k", &url];
    let read = epochgate_tests::command::run("qemu-io", read);
    assert!(!read.with(0).out.contains("failed"), "the epoch is back");
    gateway.stop();
}

/// Flips one bit where `pattern` is found in a segment; returns the segment, its number and the byte.
fn flip_a_bit_in(log: &Path, pattern: &[u8]) -> (std::path::PathBuf, u64, u64) {
    for entry in std::fs::read_dir(log).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "seg") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let found = bytes
            .windows(pattern.len())
            .position(|window| window == pattern);
        if let Some(at) = found {
            let at = at + pattern.len() / 2;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let number = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            return (path, number, at as u64);
        }
    }
    panic!("the data is not in the log");
}
