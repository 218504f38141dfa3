//! The gateway is lost with its machine under a protected VM, at each step of an epoch: its log recovers to the last committed epoch E, the
//! source, whose later writes are gone, is fenced, and the standby goes on from exactly E.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::site::{Options, Site, forget_held};

/// Where the gateway kills itself, and how often it passes there before. Some are tried each time, all with
/// `EPOCHGATE_TEST_ALL=1`; the points are described in nbd-server/src/failpoint.rs.
const POINTS: [(&str, bool); 8] = [
    ("gateway-after-seal:47", true),
    ("gateway-after-append:31", false),
    ("gateway-after-data-sync:29", false),
    ("gateway-before-commit-record:38", true),
    ("gateway-after-commit-record:41", true),
    ("gateway-during-apply:150", true),
    ("gateway-after-apply:23", false),
    ("gateway-after-mark-applied:26", false),
];

fn every_point() -> bool {
    std::env::var_os("EPOCHGATE_TEST_ALL").is_some_and(|all| all != "0")
}

#[test]
fn a_gateway_that_crashes_within_an_epoch_loses_nothing_that_was_committed() {
    for (point, always) in POINTS {
        if always || every_point() {
            println!("{point}");
            crash_at(point);
        }
    }
}

fn crash_at(point: &str) {
    let mut site = Site::new(&Options::default());
    let before = site.start_protected(&[("EPOCHGATE_FAILPOINT", point)]);
    site.gateway().wait_for_crash();

    let log = site.inspect_log();
    assert_eq!(log["clean"], false, "{point}: {log}");
    let committed = log["state"]["committed"].as_u64().unwrap();
    forget_held(site.path());
    site.start_gateway(&[]);

    let status = site.source().wait();
    let last = site.source().last_event();
    assert_eq!(status.code(), Some(1), "{point}: {last}");
    assert_eq!(last["event"], "fenced", "{point}");
    let reported = site.source().last_epoch("committed").unwrap();
    assert!(
        committed >= reported,
        "{point}: {reported} was reported as committed, the log has {committed}"
    );
    assert_eq!(site.resumed(), committed, "{point}");
    site.serial("standby").must_be_content(&before);
}

/// Both the source and, while it hands the disks over, the gateway are lost. The standby asks until it gets an answer.
fn crash_in_takeover(point: &str) {
    let mut site = Site::new(&Options::default());
    let before = site.start_protected(&[("EPOCHGATE_FAILPOINT", point)]);
    let committed = site.kill_source();
    site.gateway().wait_for_crash();
    site.standby().event(&["takeover_waits"]);
    let log = site.inspect_log();
    let durable = log["state"]["committed"].as_u64().unwrap();
    assert!(durable >= committed, "{point}: {log}");
    site.start_gateway(&[]);
    assert_eq!(site.resumed(), durable, "{point}");
    site.serial("standby").must_be_content(&before);
}

#[test]
fn a_gateway_that_crashes_in_a_takeover_is_asked_again() {
    // The first generation was the source's own.
    if every_point() {
        crash_in_takeover("gateway-before-generation:2");
    }
    crash_in_takeover("gateway-after-generation:2");
}
