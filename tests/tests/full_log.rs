//! The disk under the epoch log is full, for real: a small tmpfs that only the gateway sees, in a mount namespace of its own.
//! Needs root, or a system that lets users make namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use epochgate_tests::command::{Ended, epochgate, run, run_well};
use epochgate_tests::paths;
use epochgate_tests::process::Process;
use epochgate_tests::site::{make_image, tempdir, wait_for_socket};
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

const IMAGE_BYTES: u64 = 32 << 20;

struct Bench {
    dir: tempfile::TempDir,
    gateway: Process,
}

impl Bench {
    /// A gateway in async mode whose log lies on a tmpfs of 8 MiB.
    fn start() -> Self {
        let dir = tempdir();
        make_image(&dir.path().join("disk.img"), IMAGE_BYTES);
        std::fs::create_dir(dir.path().join("small")).unwrap();
        let at = dir.path().display();
        let config = format!(
            "control = \"{at}/gateway.sock\"\nlisten = [\"unix:{at}/nbd.sock\"]\n[[group]]\nname = \"g\"\n\
             log = \"{at}/small/log\"\nepoch_memory = \"{at}\"\nmode = \"async\"\nepoch_interval_ms = 20\n\
             [[group.disk]]\nname = \"d\"\nimage = \"{at}/disk.img\"\n"
        );
        std::fs::write(dir.path().join("g.toml"), config).unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--map-root-user", "sh", "-c"])
            .arg(r#"mount -t tmpfs -o size=8m tmpfs "$1" && exec "$2" gateway --config "$3""#)
            .arg("sh")
            .arg(dir.path().join("small"))
            .arg(paths::epochgate())
            .arg(dir.path().join("g.toml"));
        let mut gateway = Process::start("gateway", dir.path(), command);
        wait_for_socket(&dir.path().join("nbd.sock"), &mut gateway);
        Self { dir, gateway }
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn url(&self) -> String {
        format!("nbd+unix:///g/d?socket={}", self.file("nbd.sock"))
    }

    /// A path on the tmpfs, as it is seen from outside.
    fn inside(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.gateway.pid().to_string())
            .join("root")
            .join(self.file("small").trim_start_matches('/'))
            .join(name)
    }

    /// Takes every last byte.
    fn fill(&self) {
        let mut filler = std::fs::File::create(self.inside("filler")).unwrap();
        for size in [1 << 20, 64 << 10, 4096, 512] {
            while filler.write_all(&vec![7; size]).is_ok() {}
        }
    }

    fn group(&self) -> Value {
        let socket = self.file("gateway.sock");
        let args = [
            "status",
            "--json",
            "--runtime-dir",
            &self.file(""),
            "--gateway",
            &socket,
        ];
        let status: Value = serde_json::from_str(&epochgate(args).with(0).out).unwrap();
        status["gateway"]["groups"][0].clone()
    }
}

fn qemu_io(url: &str, commands: &[&str]) -> Ended {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    run(
        "qemu-io",
        ["-f", "raw"].into_iter().chain(commands).chain([url]),
    )
}

#[test]
fn a_flush_waits_while_the_log_is_full_and_nothing_acknowledged_is_lost() {
    let mut bench = Bench::start();
    let url = bench.url();
    qemu_io(&url, &["write -P 0x11 0 1M", "flush"]).with(0);
    bench.fill();

    let for_writer = url.clone();
    let writer = std::thread::spawn(move || {
        qemu_io(
            &for_writer,
            &[
                "write -P 0x22 1M 4M",
                "flush",
                "write -P 0x33 5M 1M",
                "flush",
            ],
        )
    });
    let trouble = wait_until(
        "the trouble in the status",
        || bench.group()["last_error"].as_str().map(str::to_owned),
        || bench.gateway.log_tail(),
    );
    assert!(
        trouble.contains("no space left for the epoch log") && trouble.contains("free some space"),
        "{trouble}"
    );
    let human = epochgate([
        "status",
        "--runtime-dir",
        &bench.file(""),
        "--gateway",
        &bench.file("gateway.sock"),
    ])
    .with(0);
    assert!(human.out.contains("TROUBLE: "), "{}", human.out);
    // What was written is there for readers, and what was committed stays. The flush is not answered.
    // Read-only, or qemu-io would flush at its end.
    run_well(
        "qemu-io",
        ["-r", "-f", "raw", "-c", "read -P 0x11 0 1M", &url],
    );
    let held = bench.group();
    assert!(held["bytes_held"].as_u64() >= Some(1 << 20), "{held}");
    assert!(
        !writer.is_finished(),
        "a flush was answered without a commit"
    );

    std::fs::remove_file(bench.inside("filler")).unwrap();
    let ended = writer.join().unwrap().with(0);
    assert!(!ended.out.contains("failed"), "{}", ended.out);
    wait_until(
        "the trouble to be over",
        || bench.group()["last_error"].is_null().then_some(()),
        || bench.group().to_string(),
    );
    // The tmpfs goes with the gateway, and the log with it: by then all must be in the image.
    wait_until(
        "everything to be applied",
        || {
            let group = bench.group();
            (group["applied"] == group["committed"] && group["bytes_held"] == 0).then_some(())
        },
        || bench.group().to_string(),
    );
    bench.gateway.kill();
    let image = bench.file("disk.img");
    for (pattern, range) in [
        ("0x11", "0 1M"),
        ("0x22", "1M 4M"),
        ("0x33", "5M 1M"),
        ("0", "6M 26M"),
    ] {
        let read = format!("read -P {pattern} {range}");
        let text = run_well("qemu-io", ["-f", "raw", "-r", "-c", &read, &image]);
        assert!(!text.contains("failed"), "{text}");
    }
}

#[test]
fn a_gateway_whose_log_is_full_can_be_stopped() {
    let mut bench = Bench::start();
    let url = bench.url();
    bench.fill();
    let writer = std::thread::spawn(move || qemu_io(&url, &["write -P 0x22 1M 4M", "flush"]));
    wait_until(
        "the trouble in the status",
        || bench.group()["last_error"].as_str().map(str::to_owned),
        || bench.gateway.log_tail(),
    );
    bench.gateway.signal(rustix::process::Signal::TERM);
    bench.gateway.wait();
    // It was never told that its data is safe.
    let ended = writer.join().unwrap();
    assert!(
        ended.code != 0 || ended.out.contains("failed") || ended.err.contains("rror"),
        "{ended:?}"
    );
}
