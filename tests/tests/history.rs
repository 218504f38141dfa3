//! The past of a group by command, with stock clients: list, pin, read at a point, rewind, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::command::{Ended, epochgate, run_well};
use epochgate_tests::history::HISTORY;
use epochgate_tests::process::Process;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn new(history: &str) -> Self {
        let bench = Self { dir: tempdir() };
        make_image(&bench.dir.path().join("root.img"), 8 << 20);
        bench.configure(history);
        bench
    }

    fn configure(&self, history: &str) {
        let text = format!(
            "control = \"{}\"\nlisten = [\"unix:{}\"]\n[[group]]\nname = \"vm\"\nlog = \"{}\"\nmode = \"async\"\n\
             epoch_memory = \"\"\n{history}\n[[group.disk]]\nname = \"root\"\nimage = \"{}\"\n",
            self.file("gateway.sock"),
            self.file("nbd.sock"),
            self.file("log"),
            self.file("root.img")
        );
        std::fs::write(self.file("gateway.toml"), text).unwrap();
    }

    fn start(&self) -> Process {
        let config = self.file("gateway.toml");
        let arguments = ["gateway", "--config", &config];
        let mut gateway = Process::epochgate("gateway", self.dir.path(), arguments, &[]);
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

    /// Fills the first megabyte, and waits until it is committed: qemu-io flushes at its end.
    fn fill(&self, byte: u8) {
        let command = format!("write -P {byte} 0 1M");
        run_well(
            "qemu-io",
            ["-f", "raw", "-c", &command, &self.uri("vm/root")],
        );
    }

    /// The first megabyte of an export is this.
    fn holds(&self, export: &str, byte: u8) {
        let command = format!("read -P {byte} 0 1M");
        let out = run_well(
            "qemu-io",
            ["-r", "-f", "raw", "-c", &command, &self.uri(export)],
        );
        assert!(
            !out.contains("verification failed"),
            "{export} is not {byte}: {out}"
        );
    }

    fn status(&self) -> Value {
        let socket = self.file("gateway.sock");
        let status = epochgate(["status", "--json", "--gateway", &socket]).with(0);
        let status: Value = serde_json::from_str(&status.out).unwrap();
        status["gateway"]["groups"][0].clone()
    }
}

#[test]
fn the_past_is_listed_pinned_read_and_gone_back_to() {
    let bench = Bench::new("[group.history]\nmin_free = \"0B\"\nage = \"7d\"\nsize = \"1GiB\"");
    let mut gateway = bench.start();
    bench.fill(1);
    let pinned = bench
        .command(&["log", "pin", "vm", "before-upgrade", "--json"])
        .with(0);
    let pinned: Value = serde_json::from_str(&pinned.out).unwrap();
    bench.fill(2);
    bench.fill(3);
    let list = bench.command(&["log", "list", "vm", "--json"]).with(0);
    let list: Value = serde_json::from_str(&list.out).unwrap();
    let points = list["points"].as_array().unwrap();
    assert!(points.len() >= 4, "{list}");
    let since = format!("epoch={}", pinned["epoch"]);
    let part = bench
        .command(&["log", "list", "vm", "--since", &since])
        .with(0);
    assert!(part.out.contains("pin=before-upgrade"), "{}", part.out);
    let time = points.last().unwrap()["time_ms"].as_u64().unwrap();
    assert!(time > 1_700_000_000_000);

    bench.holds("vm/root@pin=before-upgrade", 1);
    bench.holds(&format!("vm/root@epoch={}", pinned["epoch"]), 1);
    bench.holds("vm/root", 3);
    let missing = bench.uri("vm/root@epoch=987654");
    let refused =
        epochgate_tests::command::run("qemu-io", ["-r", "-f", "raw", "-c", "read 0 4k", &missing]);
    let refused = refused.with(1);
    assert!(
        refused.err.contains("is not kept; the nearest"),
        "{}",
        refused.err
    );

    // Somebody is attached.
    let mut holder = std::process::Command::new("qemu-io");
    holder.args(["-f", "raw", "-c", "sleep 600000", &bench.uri("vm/root")]);
    let mut holder = Process::start("holder", bench.dir.path(), holder);
    wait_until(
        "the attachment",
        || bench.status()["attachments"][0]["connections"].as_u64(),
        || gateway.log(),
    );
    bench
        .command(&["rewind", "vm", "--to", "pin=before-upgrade"])
        .with(1)
        .says(&["connections are attached", "--force"]);
    let rewound = bench
        .command(&[
            "rewind",
            "vm",
            "--to",
            "pin=before-upgrade",
            "--force",
            "--json",
        ])
        .with(0);
    let rewound: Value = serde_json::from_str(&rewound.out).unwrap();
    assert_eq!(rewound["to"], pinned["epoch"]);
    holder.kill();
    bench.holds("vm/root", 1);
    let undone = rewound["epoch"].as_u64().unwrap() - 1;
    bench.holds(&format!("vm/root@epoch={undone}"), 3);

    bench
        .command(&["log", "unpin", "vm", "nothing"])
        .with(1)
        .says(&["there are: before-upgrade"]);
    bench
        .command(&["log", "pin", "vm", "a/b"])
        .with(2)
        .says(&["1 to 64"]);
    bench
        .command(&["log", "pin", "vm", "before-upgrade"])
        .with(1)
        .says(&["already"]);
    bench
        .command(&["log", "unpin", "vm", "before-upgrade"])
        .with(0);
    bench
        .command(&["log", "list", "other"])
        .with(2)
        .says(&["there is no group"]);
    let unknown = bench
        .command(&["rewind", "vm", "--to", "yesterday"])
        .with(2);
    assert!(unknown.err.contains("epoch=NUMBER"), "{}", unknown.err);
    gateway.stop();
    let verified = epochgate(["log", "verify", &bench.file("log")]).with(0);
    assert!(
        verified.out.contains("the history is whole"),
        "{}",
        verified.out
    );
    let config = bench.file("gateway.toml");
    let detached = epochgate(["detach", "--config", &config, "vm"]).with(0);
    assert!(detached.out.contains("root.img"), "{}", detached.out);
    let raw = run_well(
        "qemu-io",
        [
            "-r",
            "-f",
            "raw",
            "-c",
            "read -P 1 0 1M",
            &bench.file("root.img"),
        ],
    );
    assert!(!raw.contains("verification failed"), "{raw}");
    // As after any restart.
    let mut gateway = bench.start();
    bench.holds("vm/root", 1);
    bench.holds(&format!("vm/root@epoch={undone}"), 3);
    gateway.stop();
}

#[test]
fn a_history_is_not_left_behind_by_mistake() {
    let bench = Bench::new(HISTORY);
    let mut gateway = bench.start();
    bench.fill(1);
    gateway.stop();
    bench.configure("");
    let config = bench.file("gateway.toml");
    let refused = epochgate(["gateway", "--config", &config]);
    refused.with(2).says(&["[group.history]", "history"]);
    bench.configure("[group.history]\nage = \"7 days\"");
    epochgate(["gateway", "--config", &config])
        .with(2)
        .says(&["7 days", "7d"]);
    bench.configure(HISTORY);
    let mut gateway = bench.start();
    bench.holds("vm/root@epoch=1", 1);
    gateway.stop();
}
