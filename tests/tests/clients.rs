//! `epochgate serve` and the NBD clients that people use, in sync and in async mode: what they wrote is what they read, also
//! after a stop and a start.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use epochgate_tests::command::{epochgate, run, run_well};
use epochgate_tests::process::Process;
use epochgate_tests::site::{forget_held, make_image, tempdir, wait_for_socket};

const BYTES: u64 = 64 << 20;

struct Served {
    dir: tempfile::TempDir,
    options: &'static [&'static str],
    server: Process,
}

impl Served {
    fn start(options: &'static [&'static str]) -> Self {
        let dir = tempdir();
        make_image(&dir.path().join("disk.img"), BYTES);
        let server = serve(dir.path(), options, &[]);
        Self {
            dir,
            options,
            server,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.file("nbd.sock"))
    }

    /// SIGTERM, and what must be true afterwards.
    fn stop(&mut self) {
        self.server.stop();
        assert!(
            !self.path("nbd.sock").exists(),
            "the socket was left behind"
        );
        let log = self.path("disk.img.epochlog");
        if log.exists() {
            let report =
                epochgate(["log", "inspect", "--json", &log.display().to_string()]).with(0);
            let report: serde_json::Value = serde_json::from_str(&report.out).unwrap();
            assert_eq!(report["clean"], true, "{report}");
            assert_eq!(report["unapplied"], serde_json::json!([]), "{report}");
        }
    }

    fn start_again(&mut self) {
        self.server = serve(self.dir.path(), self.options, &[]);
    }
}

fn serve(dir: &std::path::Path, options: &[&str], env: &[(&str, &str)]) -> Process {
    let (image, socket) = (dir.join("disk.img"), dir.join("nbd.sock"));
    let mut args = vec!["serve".to_owned(), image.display().to_string()];
    args.extend(["--unix".to_owned(), socket.display().to_string()]);
    args.extend(options.iter().map(|&option| option.to_owned()));
    if options.contains(&"--async") {
        args.extend(["--epoch-memory".to_owned(), dir.display().to_string()]);
    }
    let mut server = Process::epochgate("serve", dir, args, env);
    wait_for_socket(&socket, &mut server);
    server
}

/// Bytes that no two places share.
fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn clients_agree(options: &'static [&'static str]) {
    let mut served = Served::start(options);
    let url = served.url();

    assert_eq!(
        run_well("nbdinfo", ["--size", &url]).trim(),
        BYTES.to_string()
    );
    let info: serde_json::Value =
        serde_json::from_str(&run_well("nbdinfo", ["--json", &url])).unwrap();
    let export = &info["exports"][0];
    for can in [
        "can_flush",
        "can_fua",
        "can_trim",
        "can_zero",
        "can_multi_conn",
    ] {
        assert_eq!(export[can], true, "{can}: {info}");
    }
    assert_eq!(export["is_read_only"], false, "{info}");

    std::fs::write(served.path("in.raw"), pattern(BYTES, 42)).unwrap();
    run_well("nbdcopy", ["--flush", &served.file("in.raw"), &url]);
    run_well("nbdcopy", [&url, &served.file("out.raw")]);
    assert!(
        std::fs::read(served.path("in.raw")).unwrap()
            == std::fs::read(served.path("out.raw")).unwrap(),
        "nbdcopy reads something else than it wrote"
    );
    served.stop();
    run_well("cmp", [served.file("in.raw"), served.file("disk.img")]);
    served.start_again();
    run_well(
        "qemu-img",
        [
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &served.file("in.raw"),
            &url,
        ],
    );

    // A sparse image of another kind: zeros and holes take other requests than data.
    let sparse = served.file("sparse.qcow2");
    run_well("qemu-img", ["create", "-q", "-f", "qcow2", &sparse, "64M"]);
    run_well(
        "qemu-io",
        [
            "-f",
            "qcow2",
            "-c",
            "write -P 0x5a 3M 1M",
            "-c",
            "write -z 9M 1M",
            "-c",
            "write -P 0xa5 63M 1M",
            &sparse,
        ],
    );
    run_well(
        "qemu-img",
        ["convert", "-n", "-f", "qcow2", "-O", "raw", &sparse, &url],
    );
    run_well(
        "qemu-img",
        ["compare", "-f", "qcow2", "-F", "raw", &sparse, &url],
    );
    let differs = run(
        "qemu-img",
        [
            "compare",
            "-f",
            "raw",
            "-F",
            "raw",
            &served.file("in.raw"),
            &url,
        ],
    );
    assert_eq!(
        differs.code, 1,
        "qemu-img must see a difference: {differs:?}"
    );
    served.stop();
    run_well(
        "qemu-img",
        [
            "compare",
            "-f",
            "qcow2",
            "-F",
            "raw",
            &sparse,
            &served.file("disk.img"),
        ],
    );
    served.start_again();
    run_well(
        "qemu-img",
        ["compare", "-f", "qcow2", "-F", "raw", &sparse, &url],
    );
    fio(&served, "fio", &["--rw=randwrite", "--do_verify=1"]);
    served.stop();
    served.start_again();
    fio(&served, "fio", &["--rw=randwrite", "--verify_only"]);
    served.stop();
}

/// Random writes of random sizes, each block with its own checksum, or only their verification.
fn fio(served: &Served, name: &str, options: &[&str]) {
    let uri = format!("--uri={}", served.url());
    let (name, size) = (format!("--name={name}"), format!("--size={BYTES}"));
    // It leaves files in its working directory.
    let aux = format!("--aux-path={}", served.dir.path().display());
    let common = [
        "--ioengine=nbd",
        &uri,
        &name,
        &size,
        &aux,
        "--bs=4k",
        "--iodepth=32",
        "--io_size=16M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randseed=7",
        "--end_fsync=1",
        "--output-format=terse",
    ];
    run_well("fio", common.iter().chain(options));
}

#[test]
fn clients_agree_in_sync_mode() {
    clients_agree(&[]);
}

#[test]
fn clients_agree_in_async_mode() {
    clients_agree(&["--async", "--epoch-interval", "20"]);
}

#[test]
fn a_read_only_export_is_read_only() {
    let served = Served::start(&["--read-only"]);
    let url = served.url();
    let info: serde_json::Value =
        serde_json::from_str(&run_well("nbdinfo", ["--json", &url])).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true, "{info}");
    std::fs::write(served.path("in.raw"), pattern(1 << 20, 1)).unwrap();
    let refused = run("nbdcopy", [&served.file("in.raw"), &url]);
    assert_ne!(refused.code, 0, "{refused:?}");
    let image = std::fs::read(served.path("disk.img")).unwrap();
    assert!(image.iter().all(|byte| *byte == 0));
}

/// Without a stop: what was answered is there. Where its machine is lost with the server, what a flush was answered for is there, and what
/// was not committed is gone as a whole.
#[test]
fn a_killed_server_keeps_what_was_flushed() {
    let mut served = Served::start(&["--async", "--epoch-interval", "60000"]);
    let url = served.url();
    run_well(
        "qemu-io",
        ["-f", "raw", "-c", "write -P 0x11 0 4M", "-c", "flush", &url],
    );
    // Nothing commits this: the next epoch is a minute away, and the client is killed before it can flush.
    let unflushed = [
        "-t",
        "unsafe",
        "-f",
        "raw",
        "-c",
        "write -P 0x22 2M 4M",
        "-c",
        "sigraise 9",
        &url,
    ];
    assert_eq!(run("qemu-io", unflushed).code, 137);
    let there = "read -P 0x22 2M 4M";
    assert!(!run_well("qemu-io", ["-r", "-f", "raw", "-c", there, &url]).contains("failed"));
    served.server.kill();
    served.start_again();
    assert!(!run_well("qemu-io", ["-r", "-f", "raw", "-c", there, &url]).contains("failed"));
    served.server.kill();
    forget_held(served.dir.path());
    served.start_again();
    for read in ["read -P 0x11 0 4M", "read -P 0 4M 60M"] {
        let text = run_well("qemu-io", ["-r", "-f", "raw", "-c", read, &url]);
        assert!(!text.contains("failed"), "{read}: {text}");
    }
}
