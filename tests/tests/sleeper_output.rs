//! A source host that is frozen and wakes after the takeover tells the network nothing of what its gate had held. It falls asleep at the
//! worst moment: the standby has acknowledged an epoch, and its commit record is not asked for yet. And the tests can tell: with
//! `output = "pass"` the sleeper is heard.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use epochgate_tests::network::{Frame, Lan};
use epochgate_tests::process::{is_alive, is_stopped, signal_pid};
use epochgate_tests::site::{Options, Site};
use epochgate_tests::waiting::wait_until;
use rustix::process::Signal;
use serde_json::Value;

/// The source stops itself here, at its fourth epoch.
const ASLEEP: (&str, &str) = ("EPOCHGATE_FAILPOINT", "source-after-commit1:4:stop");

/// What the network has seen of a source that slept through its failover.
struct Slept {
    /// Frames of both sides.
    frames: Vec<Frame>,
    /// Packets of the source when it and its guest were frozen.
    until_frozen: u64,
    /// The same when it was gone.
    until_gone: u64,
    /// Events of the source.
    events: Vec<Value>,
    /// The epoch from which the guest went on at the standby.
    resumed: u64,
}

impl Slept {
    /// Packets that the guest had sent at the source before the cut of an epoch.
    fn packets_at(&self, epoch: u64) -> Option<u64> {
        let mut events = self.events.iter();
        let captured = events.find(|e| e["event"] == "captured" && e["epoch"] == epoch)?;
        captured["output_packets"].as_u64()
    }

    /// Beacons that came twice: the guest sends each number once, so the second one is of a run that nobody remembers.
    fn told_twice(&self) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        let beacons = self.frames.iter().filter_map(Frame::beacon);
        beacons.filter(|number| !seen.insert(*number)).collect()
    }
}

/// Freezes the source's host, and wakes it when the guest runs and talks at the standby. `woken` is called when its QEMU is awake, and its
/// coordinator not yet.
fn a_source_sleeps_through_its_failover(
    output: &'static str,
    woken: impl FnOnce(&Lan, u64),
) -> Slept {
    let mut site = Site::new(&Options {
        // Long epochs: each has many packets.
        interval_ms: 1_000,
        suspicion_ms: 5_000,
        output: Some(output),
        ..Options::default()
    });
    let capture = site.lan().capture();
    site.start_gateway(&[]);
    site.start_source_with(&[ASLEEP]);
    site.serial("source").at_work();
    site.start_standby();
    let (coordinator, qemu) = (site.source().pid(), site.source_qemu());
    let frozen = |what: &str, pid| {
        let state = || (is_stopped(pid) || !is_alive(pid)).then_some(());
        wait_until(what, state, || format!("pid {pid}"));
        assert!(is_alive(pid), "{what} in vain: it has ended");
    };
    frozen("the source to fall asleep", coordinator);
    signal_pid(qemu, Signal::STOP);
    frozen("its QEMU to fall asleep", qemu);
    let until_frozen = site.lan().packets_from("host-a");

    let resumed = site.resumed();
    site.lan().wait_for_more_from("host-b", 100);
    // The guest of the past first: it goes on and talks before anyone tells it to stop.
    signal_pid(qemu, Signal::CONT);
    woken(site.lan(), until_frozen);
    site.source().signal(Signal::CONT);
    site.source().wait();
    assert_eq!(site.source().last_event()["event"], "fenced");
    wait_until(
        "the old QEMU to be gone",
        || (!is_alive(qemu)).then_some(()),
        || format!("pid {qemu}"),
    );
    let until_gone = site.lan().packets_from("host-a");
    site.lan().wait_for_more_from("host-b", 100);
    Slept {
        frames: capture.end(),
        until_frozen,
        until_gone,
        events: site.source().events(),
        resumed,
    }
}

#[test]
fn a_source_that_wakes_after_the_takeover_releases_nothing_that_was_held() {
    let slept = a_source_sleeps_through_its_failover("hold", |_, _| {});
    assert!(slept.until_frozen > 100, "the source was heard before");
    let beacons = slept.frames.iter().filter_map(Frame::beacon).count();
    assert!(beacons > 100, "{beacons} beacons were seen");
    // It had something to keep back: packets of an epoch that the standby has acknowledged and that was never committed.
    let committed = slept.packets_at(slept.resumed).unwrap();
    let held = slept.packets_at(slept.resumed + 1).unwrap() - committed;
    assert!(held > 0, "nothing was held when it fell asleep");
    // All that its QEMU ever gave to the network, whatever it was, is what the guest had sent before the cut of E.
    assert!(
        slept.until_gone <= committed,
        "{} packets left, {committed} were committed; {} had left when it was frozen",
        slept.until_gone,
        slept.until_frozen
    );
    assert_eq!(slept.told_twice(), [0; 0], "as the network sees it");
}

/// The test above can fail.
#[test]
fn without_the_gate_a_source_that_wakes_is_heard() {
    let slept = a_source_sleeps_through_its_failover("pass", |lan, until_frozen| {
        wait_until(
            "the sleeper to talk",
            || (lan.packets_from("host-a") > until_frozen + 20).then_some(()),
            String::new,
        );
    });
    assert!(slept.until_gone > slept.until_frozen);
    assert!(!slept.told_twice().is_empty());
}
