//! A writable clone by command, with a stock client: made, written, there after a kill of the gateway, removed; the head is untouched.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::command::{Ended, epochgate, run_well};
use epochgate_tests::process::Process;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use serde_json::Value;

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempdir() };
        make_image(&bench.dir.path().join("root.img"), 8 << 20);
        let text = format!(
            "control = \"{}\"\nlisten = [\"unix:{}\"]\n[[group]]\nname = \"vm\"\nlog = \"{}\"\nmode = \"async\"\n\
             epoch_memory = \"\"\n[group.history]\nmin_free = \"0B\"\n[[group.disk]]\nname = \"root\"\nimage = \"{}\"\n",
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
        let arguments = ["gateway", "--config", &config];
        let mut gateway = Process::epochgate("gateway", self.dir.path(), arguments, &[]);
        wait_for_socket(&self.dir.path().join("gateway.sock"), &mut gateway);
        gateway
    }

    fn clone(&self, arguments: &[&str]) -> Ended {
        let control = self.file("gateway.sock");
        let control = ["--control", &control];
        epochgate(["clone"].iter().chain(arguments).chain(&control))
    }

    fn qemu_io(&self, export: &str, command: &str) {
        let uri = format!("nbd+unix:///{export}?socket={}", self.file("nbd.sock"));
        let out = run_well("qemu-io", ["-f", "raw", "-c", command, &uri]);
        assert!(!out.contains("verification failed"), "{export}: {out}");
    }
}

#[test]
fn a_clone_is_written_and_the_head_is_not() {
    let bench = Bench::new();
    let mut gateway = bench.start();
    bench.qemu_io("vm/root", "write -P 1 0 1M");
    bench.clone(&["add", "vm", "try"]).with(0);
    bench.qemu_io("vm/root", "write -P 2 0 1M");
    bench.qemu_io("vm/root@clone=try", "read -P 1 0 1M");
    bench.qemu_io("vm/root@clone=try", "write -P 3 1000 5000");
    bench.qemu_io("vm/root", "read -P 2 0 1M");
    gateway.kill();
    let mut gateway = bench.start();
    bench.qemu_io("vm/root@clone=try", "read -P 3 1000 5000");
    bench.qemu_io("vm/root@clone=try", "read -P 1 6000 500k");
    bench.qemu_io("vm/root", "read -P 2 0 1M");
    let list = bench.clone(&["list", "vm", "--json"]).with(0);
    let list: Value = serde_json::from_str(&list.out).unwrap();
    assert_eq!(list[0]["exports"]["root"], "vm/root@clone=try");
    assert_eq!(list[0]["written"], 8192, "{list}");
    let taken = bench.clone(&["add", "vm", "try"]).with(1);
    taken.says(&["there is a clone 'try' already"]);
    bench.clone(&["remove", "vm", "try"]).with(0);
    let gone = bench.clone(&["remove", "vm", "try"]).with(2);
    gone.says(&["there is no clone 'try'"]);
    bench.qemu_io("vm/root", "read -P 2 0 1M");
    gateway.stop();
}
