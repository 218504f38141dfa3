//! The whole VM goes back in time: its memory, which the standby keeps, and the disks of the same epoch. The witness in the guest goes on
//! from there and finds both in agreement. And beside the VM that runs, as a clone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use epochgate_tests::command::epochgate;
use epochgate_tests::process::Process;
use epochgate_tests::serial::Verdict;
use epochgate_tests::site::{Options, Site, VM};
use serde_json::Value;

/// Memory points that are waited for.
const POINTS: usize = 10;

/// A site that keeps history, and memory every second.
fn site_with_memory() -> Site {
    let site = Site::new(&Options::default());
    site.keep_history("1s");
    site
}

/// Waits until so many points are kept.
#[track_caller]
fn keep(site: &mut Site, points: usize) {
    for _ in 0..points {
        site.standby().event(&["memory_kept"]);
    }
}

/// The epochs of all points.
#[track_caller]
fn epochs(site: &Site) -> Vec<u64> {
    let ended = epochgate(["memory", "list", "--json", &site.memory()]).with(0);
    let points: Value = serde_json::from_str(&ended.out).unwrap();
    let points = points.as_array().unwrap();
    points
        .iter()
        .map(|p| p["epoch"].as_u64().unwrap())
        .collect()
}

/// `epochgate rewind vm1 --with-memory`. Returns the directory of the state.
#[track_caller]
fn rewind(site: &Site, epoch: u64, number: usize) -> String {
    let (control, memory) = (site.control(), site.memory());
    let (to, state) = (
        format!("epoch={epoch}"),
        site.file(&format!("state-{number}")),
    );
    let control = control.display().to_string();
    let args = [
        "rewind",
        VM,
        "--to",
        &to,
        "--with-memory",
        "--memory",
        &memory,
        "--state",
        &state,
        "--force",
        "--json",
        "--control",
        &control,
    ];
    let ended = epochgate(args).with(0);
    let answer: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(answer["memory"]["epoch"], epoch, "{answer}");
    state
}

/// Starts the source from a saved state. Returns the first word of its witness.
#[track_caller]
fn start_from(site: &mut Site, state: &str) -> Verdict {
    site.start_source_from(state);
    site.serial("source").wait("the witness", |_| true)
}

/// Sets the running VM back, and says what its witness said last and what it says first after that.
#[track_caller]
fn travel(site: &mut Site, epoch: u64, number: usize) -> (Verdict, Verdict) {
    let last = site.serial("source").latest().unwrap();
    let began = Instant::now();
    let state = rewind(site, epoch, number);
    println!("back at epoch {epoch} after {:?}", began.elapsed());
    let status = site.source().wait();
    assert_eq!(status.code(), Some(1), "{}", site.source().log_tail());
    let first = start_from(site, &state);
    println!("its witness speaks after {:?}", began.elapsed());
    (last, first)
}

#[test]
fn the_witness_goes_on_from_many_epochs() {
    let mut site = site_with_memory();
    site.start_protected(&[]);
    keep(&mut site, POINTS);
    let all = epochs(&site);
    let newest = all.len() - 1;
    // Back, back further, and forth into a future that was undone; and all others, if there is time.
    let mut places = vec![newest / 2, 0, newest];
    if std::env::var_os("EPOCHGATE_TEST_ALL").is_some_and(|all| all != "0") {
        places.extend((1..newest).rev().filter(|place| *place != newest / 2));
        assert!(places.len() >= POINTS);
    }
    let (mut run, mut earlier) = (None, None);
    for (number, place) in places.into_iter().enumerate() {
        let (last, first) = travel(&mut site, all[place], number);
        assert_eq!(first.run, last.run, "the guest was started anew");
        match earlier {
            None => assert!(first.seq < last.seq, "{first:?} is not before {last:?}"),
            Some((before, seq)) if place > before => assert!(first.seq > seq, "{first:?}"),
            Some((_, seq)) => assert!(first.seq < seq, "{first:?}"),
        }
        earlier = Some((place, first.seq));
        site.serial("source").must_be_content(&first);
        run = Some(first.run);
    }
    // Protected again, and kept again.
    site.source().event(&["protected"]);
    keep(&mut site, 1);
    let epoch = *epochs(&site).last().unwrap();
    assert!(epoch > all[newest]);
    let (_, first) = travel(&mut site, epoch, 99);
    assert_eq!(Some(&first.run), run.as_ref());
    site.serial("source").must_be_content(&first);
}

#[test]
fn a_clone_runs_beside_the_vm() {
    let mut site = site_with_memory();
    let before = site.start_protected(&[]);
    keep(&mut site, 4);
    let epoch = epochs(&site)[1];
    let (control, memory, config) = (site.control(), site.memory(), site.file("vm.toml"));
    let (to, control) = (format!("epoch={epoch}"), control.display().to_string());
    let args = [
        "rewind",
        VM,
        "--to",
        &to,
        "--as-clone",
        "peek",
        "--memory",
        &memory,
        "--config",
        &config,
        "--json",
        "--control",
        &control,
    ];
    let mut clone = Process::epochgate("clone", site.path(), args, &[]);
    let started = clone.event(&["clone_started"]);
    assert_eq!(started["memory"]["epoch"], epoch, "{started}");
    let first = site.serial("clone").wait("the clone's witness", |_| true);
    assert_eq!(first.run, before.run, "the clone was booted");
    site.serial("clone").must_be_content(&first);
    clone.stop();
    // It wrote, and not to the disks of the VM that runs.
    site.serial("source").must_be_content(&before);
    assert!(!site.source().ended());
}

#[test]
fn memory_is_not_started_on_other_disks() {
    let mut site = site_with_memory();
    site.start_protected(&[]);
    keep(&mut site, 2);
    let epoch = epochs(&site)[0];
    let memory = site.memory();
    // Memory alone: nobody has set disks back for it.
    let alone = site.file("alone");
    let number = epoch.to_string();
    epochgate([
        "memory", "export", &memory, "--epoch", &number, "--state", &alone,
    ])
    .with(0);
    let state = rewind(&site, epoch, 0);
    site.source().wait();
    let config = site.file("vm.toml");
    epochgate(["protect", "--config", &config, "--saved-state", &alone])
        .with(1)
        .says(&["no disks were set back", "--with-memory"]);
    start_from(&mut site, &state);
    site.source().stop();
    // The guest has written since.
    epochgate(["protect", "--config", &config, "--saved-state", &state])
        .with(1)
        .says(&["used them since", "rewind again"]);
}
