//! The source is lost: the guest goes on at the standby, from a committed epoch, and finds every block of its disks as its
//! memory says.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::control::post;
use epochgate_tests::process::{is_alive, signal_pid};
use epochgate_tests::site::{Options, Site, VM};
use epochgate_tests::waiting::wait_until;
use rustix::process::Signal;
use serde_json::json;

fn a_killed_source_costs_nothing_that_was_committed(tracker: &'static str) {
    let mut site = Site::new(&Options {
        tracker,
        ..Options::default()
    });
    site.start_protected(&[]);
    let before = site.serial("source").goes_on();
    let started = &site.source().events()[0];
    assert_eq!(started["dirty_tracker"], tracker, "{started}");

    let committed = site.kill_source();
    let resumed = site.resumed();
    assert!(
        resumed >= committed,
        "epoch {committed} was reported as committed, the guest goes on from {resumed}"
    );
    site.serial("standby").must_be_content(&before);
    let group = site.group();
    assert_eq!(group["mode"], "sync", "{group}");
    assert!(group["last_error"].is_null(), "{group}");
}

#[test]
fn a_killed_source_costs_nothing_with_pagemap() {
    a_killed_source_costs_nothing_that_was_committed("pagemap");
}

#[test]
fn a_killed_source_costs_nothing_with_the_hash_tracker() {
    a_killed_source_costs_nothing_that_was_committed("hash");
}

/// A source that only slept does not know that it was replaced. Neither its QEMU nor its coordinator may spoil anything.
#[test]
fn a_frozen_source_that_wakes_up_is_fenced() {
    let mut site = Site::new(&Options {
        suspicion_ms: 2_000,
        ..Options::default()
    });
    site.start_protected(&[]);
    let before = site.serial("source").goes_on();
    let qemu = site.source_qemu();
    site.source().signal(Signal::STOP);
    signal_pid(qemu, Signal::STOP);
    let committed = site.source().last_epoch("committed").unwrap();

    let lost = site.standby().event(&["source_lost"]);
    let reason = lost["reason"].as_str().unwrap();
    assert!(reason.contains("2000 ms"), "{reason}");
    assert!(site.resumed() >= committed);
    let taken_over = site.serial("standby").goes_on();

    // The guest of the past first: it runs and writes before anyone tells it to stop.
    signal_pid(qemu, Signal::CONT);
    site.source().signal(Signal::CONT);
    let status = site.source().wait();
    assert_eq!(status.code(), Some(1), "{}", site.source().log_tail());
    assert_eq!(site.source().last_event()["event"], "fenced");
    wait_until(
        "the old QEMU to be gone",
        || (!is_alive(qemu)).then_some(()),
        || format!("pid {qemu}"),
    );
    assert_eq!(taken_over.run, before.run);
    site.serial("standby").must_be_content(&taken_over);
}

/// A takeover in the standby's name although nobody has suspected anything, as a copy of an earlier request that was on its way for long
/// would be. The failover is needless and nothing more: the source that lives is fenced and yields, and the guest goes on elsewhere.
#[test]
fn a_late_takeover_while_all_are_alive_is_a_failover() {
    let mut site = Site::new(&Options::default());
    site.start_gateway(&[]);
    site.start_source();
    site.serial("source").at_work();
    let standby = site.start_standby();
    site.source().event(&["protected"]);
    let before = site.serial("source").goes_on();
    let qemu = site.source_qemu();

    let path = format!("/v1/groups/{VM}/takeover");
    let (status, taken) = post(&site.control(), &path, &json!({ "standby": standby }));
    assert_eq!(status, 200, "{taken}");
    let status = site.source().wait();
    assert_eq!(status.code(), Some(1), "{}", site.source().log_tail());
    assert_eq!(site.source().last_event()["event"], "fenced");
    let committed = site.source().last_epoch("committed").unwrap();

    let lost = site.standby().event(&["source_lost"]);
    let reason = lost["reason"].as_str().unwrap();
    assert!(reason.contains("gave the VM up"), "{reason}");
    let again = site.standby().event(&["taken_over"]);
    assert_eq!(again["generation"], taken["generation"], "one owner");
    assert_eq!(again["epoch"], taken["epoch"]);
    let resumed = site.resumed();
    assert_eq!(taken["epoch"], resumed);
    assert!(resumed >= committed);
    assert!(!is_alive(qemu), "two VMs run");
    site.serial("standby").must_be_content(&before);
    assert_eq!(site.group()["owner"], standby);
}
