//! Old history at a real S3 server: it goes there, is read, gone back to and checked by command, through restarts of both sides.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

use epochgate_tests::command::{Ended, epochgate, run, run_well};
use epochgate_tests::object_server::ObjectServer;
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 48 * MIB;
const PLACE: &str = "s3://history/site-a";

struct Bench {
    dir: tempfile::TempDir,
    server: ObjectServer,
}

impl Bench {
    /// Runs are closed after a second and go to the store at once.
    fn new() -> Self {
        let dir = tempdir();
        let server = ObjectServer::start(dir.path());
        server.make_bucket("history");
        let bench = Self { dir, server };
        make_image(&bench.dir.path().join("root.img"), SIZE);
        let text = format!(
            "control = \"{}\"\nlisten = [\"unix:{}\"]\n[[group]]\nname = \"vm\"\nlog = \"{}\"\nmode = \"async\"\nepoch_memory = \"\"\n\
             epoch_interval_ms = 3600000\n[group.history]\nmin_free = \"0B\"\nthin = [{{ after = \"1s\", every = \"1ms\" }}]\n\
             [group.history.cold]\nto = \"{PLACE}\"\nafter = \"1h\"\nwhen_above = \"1B\"\n\
             [[group.disk]]\nname = \"root\"\nimage = \"{}\"\n",
            bench.file("gateway.sock"),
            bench.file("nbd.sock"),
            bench.file("log"),
            bench.file("root.img")
        );
        std::fs::write(bench.file("gateway.toml"), text).unwrap();
        bench
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn start(&self) -> Process {
        let config = self.file("gateway.toml");
        let environment = self.server.environment();
        let environment: Vec<(&str, &str)> = environment
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let arguments = ["gateway", "--config", &config];
        let mut gateway = Process::epochgate("gateway", self.dir.path(), arguments, &environment);
        wait_for_socket(&self.dir.path().join("gateway.sock"), &mut gateway);
        gateway
    }

    fn command(&self, arguments: &[&str]) -> Ended {
        let control = self.file("gateway.sock");
        epochgate(arguments.iter().chain(&["--control", control.as_str()]))
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.file("nbd.sock"))
    }

    /// Fills parts of the disk with `byte`, and gives what is there then a name. Returns the file with the whole disk as it is then.
    fn epoch(&self, byte: u8) -> String {
        let commands = [
            format!("write -P {byte} 0 20M"),
            format!("write -P {} {}M 2M", byte ^ 0x80, 20 + 2 * u32::from(byte)),
        ];
        let uri = self.uri("vm/root");
        let arguments = ["-f", "raw", "-c", &commands[0], "-c", &commands[1], &uri];
        run_well("qemu-io", arguments);
        let name = format!("p{byte}");
        self.command(&["log", "pin", "vm", &name]).with(0);
        let file = self.file(&format!("{name}.raw"));
        run_well(
            "qemu-img",
            ["convert", "-f", "raw", "-O", "raw", &uri, &file],
        );
        file
    }

    fn status(&self) -> Value {
        let socket = self.file("gateway.sock");
        let status = epochgate(["status", "--json", "--gateway", &socket]).with(0);
        let status: Value = serde_json::from_str(&status.out).unwrap();
        status["gateway"]["groups"][0].clone()
    }

    fn cold_runs(&self) -> u64 {
        self.status()["history"]["cold_runs"].as_u64().unwrap()
    }

    /// As [`Self::epoch`]; what was before it is at the store then.
    fn cold_epoch(&self, gateway: &Process, byte: u8) -> String {
        let before = self.cold_runs();
        let file = self.epoch(byte);
        let all_but_one = || {
            let history = self.status()["history"].clone();
            let (cold, all) = (history["cold_runs"].as_u64()?, history["runs"].as_u64()?);
            (cold > before && cold + 1 == all).then_some(())
        };
        wait_until("old history to be cold", all_but_one, || gateway.log_tail());
        file
    }

    /// The disk at a pin is this, by a copy with a stock client.
    fn reads_as(&self, pin: &str, expected: &str) {
        let past = self.file("past.raw");
        let _ = std::fs::remove_file(&past);
        let uri = self.uri(&format!("vm/root@pin={pin}"));
        run_well(
            "qemu-img",
            ["convert", "-f", "raw", "-O", "raw", &uri, &past],
        );
        run_well("cmp", [&past, expected]);
    }

    fn try_read(&self, pin: &str) -> Ended {
        let uri = self.uri(&format!("vm/root@pin={pin}"));
        run("qemu-io", ["-r", "-f", "raw", "-c", "read 0 4k", &uri])
    }

    /// `log verify` with what is at the store.
    fn verify(&self) -> Ended {
        let mut command = Command::new(paths::epochgate());
        command
            .args(["log", "verify", &self.file("log"), "--cold", PLACE])
            .envs(self.server.environment());
        command.output().unwrap().into()
    }
}

#[test]
fn months_of_history_lie_at_an_object_store() {
    let bench = Bench::new();
    let mut gateway = bench.start();
    let mut states = Vec::new();
    for byte in 1..=4 {
        states.push((format!("p{byte}"), bench.cold_epoch(&gateway, byte)));
    }
    // The newest is in the image; what it takes to go back from there is here or there.
    let last = bench.cold_epoch(&gateway, 5);
    let list = bench
        .command(&["log", "list", "vm", "--limit", "1"])
        .with(0);
    assert!(list.out.contains("in cold storage"), "{}", list.out);
    let held = bench.status()["history"]["cold_bytes"].as_u64().unwrap();
    assert!(held > 60 * MIB, "{held}");
    for (pin, state) in &states {
        bench.reads_as(pin, state);
    }
    gateway.stop();
    let verdict = bench.verify().with(0);
    assert!(
        verdict.out.contains("that was read, too"),
        "{}",
        verdict.out
    );
    let mut gateway = bench.start();

    // The server stands still: what is there waits, what is here goes on.
    bench.server.freeze(true);
    let map = bench.uri("vm/root@pin=p4");
    let changed = run_well("nbdinfo", ["--map=qemu:dirty-bitmap:pin=p1", &map]);
    assert!(changed.contains(" 1 "), "{changed}");
    let mut waiting = Command::new("qemu-io");
    let past = bench.uri("vm/root@pin=p1");
    waiting.args(["-r", "-f", "raw", "-c", "read -P 1 0 1M", &past]);
    let mut waiting = Process::start("waiting", bench.dir.path(), waiting);
    run_well(
        "qemu-io",
        [
            "-f",
            "raw",
            "-c",
            "write -P 9 0 1M",
            "-c",
            "read -P 9 0 1M",
            &bench.uri("vm/root"),
        ],
    );
    assert!(!waiting.ended());
    bench.server.freeze(false);
    assert!(waiting.wait().success());
    for (pin, state) in &states {
        bench.reads_as(pin, state);
    }

    // Back to what is cold.
    bench.command(&["rewind", "vm", "--to", "pin=p2"]).with(0);
    let now = bench.file("now.raw");
    run_well(
        "qemu-img",
        [
            "convert",
            "-f",
            "raw",
            "-O",
            "raw",
            &bench.uri("vm/root"),
            &now,
        ],
    );
    run_well("cmp", [&now, &states[1].1]);
    // And a clone of it.
    bench
        .command(&["clone", "add", "vm", "try", "--at", "pin=p3"])
        .with(0);
    let clone = bench.file("clone.raw");
    run_well(
        "qemu-img",
        [
            "convert",
            "-f",
            "raw",
            "-O",
            "raw",
            &bench.uri("vm/root@clone=try"),
            &clone,
        ],
    );
    run_well("cmp", [&clone, &states[2].1]);
    bench.reads_as("p5", &last);
    gateway.stop();
}

#[test]
fn what_the_object_store_has_lost_is_named_and_costs_no_more() {
    let bench = Bench::new();
    let mut gateway = bench.start();
    let mut states = Vec::new();
    for byte in 1..=3 {
        states.push(bench.cold_epoch(&gateway, byte));
    }
    gateway.stop();
    // The first that has what the first writes have left: those before it had only zeros to keep.
    let objects = bench.server.objects("history");
    let (victim, _) = objects
        .into_iter()
        .find(|(_, size)| *size > 10 * MIB)
        .unwrap();
    let held = bench.server.object(&victim);
    let damaged: Vec<u8> = held.iter().map(|byte| byte ^ 0x11).collect();
    let name = victim.rsplit('/').next().unwrap();
    for instead in [Some(damaged), None] {
        match &instead {
            Some(bytes) => bench.server.set_object(&victim, bytes),
            None => bench.server.remove_object(&victim),
        }
        let mut gateway = bench.start();
        let refused = bench.try_read("p1");
        let failed = refused.code != 0 || refused.out.contains("failed");
        assert!(failed, "{}{}", refused.out, refused.err);
        bench.reads_as("p3", &states[2]);
        let log = gateway.log();
        assert!(log.contains(name), "{log}");
        if instead.is_none() {
            let refused = bench.command(&["rewind", "vm", "--to", "pin=p1"]).with(1);
            assert!(refused.err.contains(name), "{}", refused.err);
            bench.reads_as("p3", &states[2]);
        }
        gateway.stop();
        let verdict = bench.verify().with(1);
        assert!(verdict.out.contains(name), "{}", verdict.out);
        bench.server.set_object(&victim, &held);
        bench.verify().with(0);
    }
}
