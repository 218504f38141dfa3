//! `epochgate export` and SIGHUP against a gateway that runs: what they say, and with which exit code.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::command::{Ended, epochgate, run_well};
use epochgate_tests::process::Process;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use epochgate_tests::waiting::wait_until;
use rustix::process::Signal;
use serde_json::Value;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn configure(&self, exports: &[&str]) {
        let mut text = format!(
            "control = \"{}\"\nlisten = [\"unix:{}\"]\n",
            self.file("gateway.sock"),
            self.file("nbd.sock")
        );
        for name in exports {
            let image = self.file(name);
            text.push_str(&format!(
                "[[export]]\nname = \"{name}\"\nimage = \"{image}\"\n"
            ));
        }
        std::fs::write(self.file("gateway.toml"), text).unwrap();
    }

    fn new() -> (Self, Process) {
        let bench = Self { dir: tempdir() };
        for name in ["first", "second"] {
            make_image(&bench.dir.path().join(name), 1 << 20);
        }
        bench.configure(&["first"]);
        let config = bench.file("gateway.toml");
        let arguments = ["gateway", "--config", &config];
        let mut gateway = Process::epochgate("gateway", bench.dir.path(), arguments, &[]);
        wait_for_socket(&bench.dir.path().join("gateway.sock"), &mut gateway);
        (bench, gateway)
    }

    fn export(&self, arguments: &[&str]) -> Ended {
        let control = self.file("gateway.sock");
        let control = ["--control", &control];
        epochgate(["export"].iter().chain(arguments).chain(&control))
    }

    fn names(&self) -> Vec<String> {
        let list: Value =
            serde_json::from_str(&self.export(&["list", "--json"]).with(0).out).unwrap();
        let list = list.as_array().unwrap().iter();
        list.map(|line| line["name"].as_str().unwrap().to_owned())
            .collect()
    }

    fn qemu_io(&self, export: &str, command: &str) -> String {
        let uri = format!("nbd+unix:///{export}?socket={}", self.file("nbd.sock"));
        run_well("qemu-io", ["-f", "raw", "-c", command, &uri])
    }

    fn reload(&self) -> Option<Value> {
        let socket = self.file("gateway.sock");
        let status = epochgate(["status", "--json", "--gateway", &socket]).with(0);
        let status: Value = serde_json::from_str(&status.out).unwrap();
        let reload = status["gateway"]["reload"].clone();
        (!reload.is_null()).then_some(reload)
    }
}

#[test]
fn exports_are_added_resized_and_removed_by_command() {
    let (bench, mut gateway) = Bench::new();
    let second = bench.file("second");
    let added = bench.export(&["add", "scratch", &second]).with(0);
    assert!(added.out.contains("1.00 MiB"), "{}", added.out);
    bench.qemu_io("scratch", "write -P 1 0 64k");
    bench.export(&["resize", "scratch", "2M"]).with(0);
    bench.qemu_io("scratch", "write -P 1 1M 1M");
    bench
        .export(&["resize", "scratch", "1M"])
        .with(1)
        .says(&["--shrink"]);
    bench
        .export(&["resize", "scratch", "1M", "--shrink"])
        .with(0);
    assert_eq!(std::fs::metadata(&second).unwrap().len(), 1 << 20);
    assert_eq!(bench.names(), ["first", "scratch"]);

    let missing = bench.file("missing");
    bench
        .export(&["add", "new", &missing])
        .with(2)
        .says(&["does not exist", "truncate -s"]);
    bench
        .export(&["add", "new", &second])
        .with(2)
        .says(&["in use"]);
    bench
        .export(&["add", "scratch", &missing])
        .with(1)
        .says(&["already"]);
    bench
        .export(&["add", "a/b", &second])
        .with(2)
        .says(&["1 to 64"]);
    bench
        .export(&["remove", "nothing"])
        .with(2)
        .says(&["there is no export 'nothing'", "first, scratch"]);
    let much = bench.export(&["resize", "scratch", "much"]).with(2);
    assert!(much.err.contains("is no unit"), "{}", much.err);
    bench.export(&["remove", "scratch"]).with(0);
    assert_eq!(bench.names(), ["first"]);
    gateway.stop();
    let gone = epochgate(["export", "list", "--control", &bench.file("gateway.sock")]);
    gone.with(1).says(&["is `epochgate gateway` running?"]);
}

#[test]
fn sighup_reads_the_configuration_again() {
    let (bench, mut gateway) = Bench::new();
    bench.configure(&["first", "second"]);
    gateway.signal(Signal::HUP);
    let reload = wait_until("the reload", || bench.reload(), || gateway.log());
    assert_eq!(reload["message"], "added: second");
    bench.qemu_io("second", "read 0 64k");

    std::fs::write(bench.file("gateway.toml"), "listen = 7").unwrap();
    gateway.signal(Signal::HUP);
    let refused = || bench.reload().filter(|reload| reload["ok"] == false);
    wait_until("the refusal", refused, || gateway.log());
    let status = epochgate(["status", "--gateway", &bench.file("gateway.sock")]).with(0);
    assert!(
        status.out.contains("TROUBLE: the last reload"),
        "{}",
        status.out
    );
    assert_eq!(bench.names(), ["first", "second"]);
    gateway.stop();
}
