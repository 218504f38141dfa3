//! A protected VM that `epochgate monitor watch` watches with the model that comes with Epochgate: it is left alone while it works hard; when its
//! kernel hangs, and when it leaks, it is found, its last healthy epoch is pinned, it is set back with its memory, and it serves again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use epochgate_tests::lab_guest::{Client, Shell, answers, site};
use epochgate_tests::network::HOSTS;
use epochgate_tests::process::Process;
use epochgate_tests::site::{Options, Site, VM};
use epochgate_tests::waiting::wait_until;
use serde_json::Value;

/// So long a VM that is busy and well is looked at; with `EPOCHGATE_TEST_ALL=1` for an hour.
const BUSY: Duration = Duration::from_secs(30);
const BUSY_ALL: Duration = Duration::from_secs(3600);

/// A VM whose disks and memory are kept, and that is to be set back when it is faulty. The alarm is lower than that of the model: to somebody outside a
/// leak is work, and what this VM does otherwise is far from it.
fn watched_site() -> Site {
    let site = site(&Options {
        memory_mib: 384,
        output: Some("hold"),
        interval_ms: 200,
        ..Options::default()
    });
    site.keep_history("2s");
    let (memory, states) = (site.memory(), site.file("states"));
    site.write(
        "monitor.toml",
        &format!(
            "memory = \"{memory}\"\nstate = \"{states}\"\n[verdict]\nalarm = 0.55\nmargin = \"15s\"\n[actions]\nrest = \"5s\"\n\
             faulty = [{{ do = \"notify\" }}, {{ do = \"pin_healthy\" }}, \
             {{ do = \"rewind\", with_memory = true, then = [\"sh\", \"-c\", \"echo $EPOCHGATE_STATE > {states}/newest\"] }}]\n"
        ),
    );
    site
}

/// What the monitor says of the VM, as `epochgate status` has it.
#[track_caller]
fn health(site: &Site) -> Value {
    let all = site.status()["health"].clone();
    assert_eq!(all[0]["vm"], VM, "{all}");
    all[0].clone()
}

/// How often the VM was set back.
fn rewinds(health: &Value) -> u64 {
    let actions = &health["figures"]["actions"];
    actions["rewind"]["done"].as_u64().unwrap_or(0)
}

/// Waits for a verdict.
#[track_caller]
fn verdict(monitor: &mut Process, health: &str) -> Value {
    let said = |event: &Value| event["event"] == "verdict" && event["health"] == health;
    monitor.event_where(&format!("the verdict {health}"), said)
}

/// Waits until the VM is found healthy, and for long enough that there is a new moment to go back to. Returns that moment.
#[track_caller]
fn well(site: &Site, monitor: &mut Process) -> u64 {
    let found = verdict(monitor, "healthy");
    wait_until(
        "a new moment to go back to",
        || {
            let sound = health(site)["sound_until_ms"].as_u64();
            sound.filter(|sound| Some(*sound) > found["sound_until_ms"].as_u64())
        },
        || health(site).to_string(),
    )
}

/// Breaks the VM, and waits until it is found, set back and serves again. `sound_ms` is a moment at which it was well.
#[track_caller]
fn is_set_back(site: &mut Site, monitor: &mut Process, fault: &str, sound_ms: u64) {
    println!("{fault}");
    Shell::open(site, "source").begin(fault);
    let broken = Instant::now();
    let found = verdict(monitor, "faulty");
    println!("found after {:?}: {found}", broken.elapsed());
    assert!(
        found["sound_until_ms"].as_u64() >= Some(sound_ms),
        "{found}"
    );
    assert!(
        found["reasons"]
            .as_array()
            .is_some_and(|reasons| !reasons.is_empty()),
        "{found}"
    );
    for action in ["pin_healthy", "rewind"] {
        let done = monitor.event(&["action"]);
        assert_eq!(
            (&done["action"], &done["outcome"]),
            (&action.into(), &"done".into()),
            "{done}"
        );
    }
    let pin = format!("healthy-{}", found["sound_until_ms"]);
    let pins = site.group()["history"]["pins"].clone();
    let has = |pins: &Value| pins.as_array().unwrap().iter().any(|p| p["name"] == *pin);
    assert!(has(&pins), "{pin} is not in {pins}");
    // The VM that was ill is fenced.
    assert_eq!(site.source().wait().code(), Some(1));
    let newest =
        std::fs::read_to_string(PathBuf::from(site.file("states")).join("newest")).unwrap();
    site.start_source_from(newest.trim());
    wait_until(
        "an answer of the VM that was set back",
        || answers(site).then_some(()),
        || site.serial("source").text(),
    );
    println!("serves again after {:?}", broken.elapsed());
    site.source().event(&["protected"]);
}

#[test]
fn a_busy_vm_is_left_alone_and_a_sick_one_is_set_back_and_serves_again() {
    let mut site = watched_site();
    site.start_gateway(&[]);
    site.start_source();
    let mut shell = Shell::open(&site, "source");
    site.start_standby();
    site.source().event(&["protected"]);
    assert!(answers(&site));

    let _client = Client::start(&site);
    for load in [
        "SEED=7 RATE=20 ROWS=4000 load_db_write",
        "JOBS=1 OPT=1 load_compile",
    ] {
        shell.run(load);
    }
    drop(shell);

    let config = site.file("vm.toml");
    let settings = site.file("monitor.toml");
    let args = [
        "monitor",
        "watch",
        "--config",
        &config,
        "--settings",
        &settings,
        "--json",
    ];
    let mut monitor = site.start(HOSTS[0], "monitor", args, &[]);
    let sound = well(&site, &mut monitor);
    let all = std::env::var_os("EPOCHGATE_TEST_ALL").is_some_and(|all| all != "0");
    let end = Instant::now() + if all { BUSY_ALL } else { BUSY };
    while Instant::now() < end {
        let now = health(&site);
        assert_eq!(rewinds(&now), 0, "{now}");
        std::thread::sleep(Duration::from_secs(1));
    }
    wait_until(
        "a VM that is found healthy",
        || (health(&site)["health"] == "healthy").then_some(()),
        || health(&site).to_string(),
    );
    is_set_back(&mut site, &mut monitor, "CPUS=1 fault_soft_lockup", sound);
    let sound = well(&site, &mut monitor);
    is_set_back(&mut site, &mut monitor, "RATE=19000 fault_leak", sound);
    let now = health(&site);
    assert_eq!(rewinds(&now), 2, "{now}");
    monitor.stop();
}
