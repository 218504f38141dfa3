//! `epochgate monitor record` of a VM that is protected, through the gateway, the output gate and a tap, as a user does it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use epochgate_tests::command::epochgate;
use epochgate_tests::network::HOSTS;
use epochgate_tests::process::Process;
use epochgate_tests::site::{Options, Site, VM, tempdir};
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

fn shown(file: &str) -> Value {
    let out = epochgate(["monitor", "show", "--json", file]).with(0).out;
    serde_json::from_str(&out).unwrap()
}

#[test]
fn a_protected_vm_is_recorded_from_all_sides() {
    let mut site = Site::new(&Options {
        output: Some("hold"),
        ..Options::default()
    });
    site.start_protected(&[]);
    let (config, to) = (site.file("vm.toml"), site.file("run.egrec"));
    let arguments = [
        "monitor",
        "record",
        "--config",
        &config,
        "--to",
        &to,
        "--interval",
        "500ms",
        "--for",
        "8s",
        "--label",
        "load=witness",
        "--label",
        "seed=7",
        "--label",
        "where=here",
        "--fault",
        "nothing_really@2s..3s",
        "--json",
    ];
    let told: Value =
        serde_json::from_str(epochgate(arguments).with(0).out.lines().last().unwrap()).unwrap();
    assert_eq!(told["missing"], serde_json::json!(["kvm"]), "{told}");
    assert!(told["samples"].as_u64().unwrap() > 3, "{told}");

    let shown = shown(&to);
    let of = |signal: &str, what: &str| shown["signals"][signal][what].as_f64();
    for signal in [
        "vcpu.run.mean",
        "memory.resident",
        "block.write.ops",
        "gateway.write.bytes",
        "gateway.epoch.bytes",
        "gateway.epoch.blocks",
        "dirty.pages",
        "dirty.regions",
        "dirty.entropy",
        "dirty.repeat",
        "net.out.packets",
        "net.out.bytes",
        "gate.packets",
        "gate.bytes",
        "vm.running",
    ] {
        assert!(
            of(signal, "max") > Some(0.0),
            "{signal}: {}",
            shown["signals"][signal]
        );
    }
    // Each checkpoint stops it for a moment, which is nothing that the guest does.
    assert!(of("vm.running", "mean") > Some(0.5), "{shown}");
    assert_eq!(shown["signals"].get("event.stop"), None);
    assert_eq!(of("event.panic", "max"), Some(0.0));
    let run = &shown["run"];
    assert_eq!(
        (&run["load"], &run["seed"], &run["tags"]["where"]),
        (&"witness".into(), &7.into(), &"here".into())
    );
    assert_eq!(
        run["fault"],
        serde_json::json!({"kind": "nothing_really", "at_ms": 2000, "until_ms": 3000})
    );
    assert_eq!(
        (&run["vm"]["memory_mib"], &run["vm"]["disks"]),
        (&256.into(), &2.into())
    );

    let csv = epochgate(["monitor", "show", "--csv", &to]).with(0).out;
    assert!(csv.starts_with("at_ms,wall_ms,vcpu.run.mean,"), "{csv}");
    assert_eq!(
        csv.lines().count() as u64,
        1 + told["samples"].as_u64().unwrap()
    );
}

#[test]
fn a_recording_ends_whole_when_it_is_told_to() {
    let mut site = Site::new(&Options::default());
    site.start_gateway(&[]);
    site.start_source();
    let (config, to) = (site.file("vm.toml"), site.file("run.egrec"));
    let arguments = [
        "monitor",
        "record",
        "--config",
        &config,
        "--to",
        &to,
        "--interval",
        "100ms",
        "--json",
    ];
    let mut recorder = Process::epochgate("recorder", site.path(), arguments, &[]);
    recorder.event(&["recording"]);
    site.serial("source").at_work();
    std::thread::sleep(std::time::Duration::from_secs(3));
    recorder.stop();
    let shown = shown(&to);
    assert!(shown["samples"].as_u64().unwrap() > 0);
    assert_eq!(shown["run"]["load"], Value::Null);
    assert!(
        shown["signals"]["block.write.ops"]["max"].as_f64() > Some(0.0),
        "{shown}"
    );
    assert_eq!(
        shown["signals"].get("dirty.pages"),
        None,
        "nobody tracks the pages of a VM that is not protected"
    );
}

/// The page of metrics at a unix socket.
fn scrape(socket: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: monitor\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[test]
fn a_protected_vm_is_watched() {
    let mut site = Site::new(&Options {
        output: Some("hold"),
        ..Options::default()
    });
    site.start_protected(&[]);
    let (config, metrics) = (site.file("vm.toml"), site.file("metrics.sock"));
    let arguments = [
        "monitor",
        "watch",
        "--config",
        &config,
        "--metrics",
        &metrics,
        "--json",
    ];
    // Where its tap is.
    let mut monitor = site.start(HOSTS[0], "monitor", arguments, &[]);
    let watching = monitor.event(&["watching"]);
    assert_eq!(watching["pid"], site.source_qemu(), "{watching}");
    let health = || site.status()["health"][0].clone();
    let judged = wait_until(
        "a window that is judged",
        || Some(health()).filter(|now| !now["opinion"].is_null()),
        || health().to_string(),
    );
    assert_eq!((&judged["vm"], &judged["lost"]), (&VM.into(), &Value::Null));
    let opinion = &judged["opinion"];
    for number in ["score", "threshold", "confidence"] {
        let value = opinion[number].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&value), "{number}: {opinion}");
    }
    // Nothing is missing that the model listens to but what needs KVM.
    assert!(opinion["confidence"].as_f64() > Some(0.9), "{judged}");
    let page = scrape(&metrics);
    assert!(
        page.contains("epochgate_monitor_reachable{vm=\"vm1\"} 1"),
        "{page}"
    );
    let mut second = site.start(HOSTS[0], "second", arguments, &[]);
    assert_eq!(second.wait().code(), Some(2), "{}", second.log_tail());
    monitor.stop();
    assert_eq!(site.status()["health"], serde_json::json!([]));
}

#[test]
fn settings_that_are_wrong_are_refused() {
    let dir = tempdir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let check = |text: &str| {
        std::fs::write(file("monitor.toml"), text).unwrap();
        let settings = file("monitor.toml");
        epochgate([
            "monitor",
            "watch",
            "--vm",
            "vm1",
            "--check",
            "--settings",
            &settings,
        ])
    };
    check("").with(0);
    check("[verdict]\nwindows = 2\nof = 4\n")
        .with(2)
        .says(&["more than half"]);
    check("[actions]\nfaulty = [{ do = \"pin_healthy\" }]\n")
        .with(2)
        .says(&["pin_healthy", "gateway"]);
    check("[actions]\nfaulty = [{ do = \"shrug\" }]\n")
        .with(2)
        .says(&["shrug", "notify"]);
    check("[actions]\nstrange = [{ do = \"restart\" }]\n")
        .with(2)
        .says(&["strange"]);
    std::fs::write(file("x.egmodel"), "no model").unwrap();
    check(&format!("model = \"{}\"\n", file("x.egmodel")))
        .with(2)
        .says(&["x.egmodel"]);
}

#[test]
fn what_is_no_recording_is_refused() {
    let dir = tempdir();
    let file = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(file("a.egrec"), "no such thing").unwrap();
    epochgate(["monitor", "show", &file("a.egrec")])
        .with(1)
        .says(&["a.egrec", "no recording"]);
    epochgate(["monitor", "show", &file("b.egrec")])
        .with(1)
        .says(&["b.egrec", "No such file"]);

    let to = file("c.egrec");
    epochgate([
        "monitor",
        "record",
        "--vm",
        "nobody",
        "--runtime-dir",
        &file(""),
        "--to",
        &to,
    ])
    .with(1)
    .says(&["source-nobody.sock", "is `epochgate protect` running?"]);
    for (more, word) in [
        (vec!["--vm", "x", "--interval", "1ms"], "100 ms to 10 s"),
        (vec!["--vm", "x", "--label", "words"], "KEY=VALUE"),
        (
            vec!["--qmp", "/x", "--pid", "1", "--gateway", "/y"],
            "needs --group",
        ),
    ] {
        let arguments = ["monitor", "record", "--to", &to].into_iter().chain(more);
        let ended = epochgate(arguments).with(2);
        assert!(ended.err.contains(word), "{}", ended.err);
    }
    epochgate(["monitor", "record", "--to", &to]).with(2);
    assert!(!Path::new(&to).exists());
}
