//! Peers on the checkpoint channel that are missing, of another version, or send damaged frames: each is turned away with the
//! reason, and the VM runs on.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::frames::{self, FutureStandby, VERSION, frame, kind, offer, spoiling_relay};
use epochgate_tests::site::{Options, Site};
use serde_json::Value;

fn has(event: &Value, words: &[&str]) -> bool {
    let reason = event["reason"].as_str().unwrap_or_default();
    event["event"] == "seeking_standby" && words.iter().all(|word| reason.contains(word))
}

/// The source's list leads to nobody, then to a standby of another version, then to a good one that comes late.
#[test]
fn a_source_says_which_standby_it_can_not_use_and_why() {
    let mut site = Site::new(&Options::default());
    let future = FutureStandby::listen(&site.path().join("future.sock"));
    let dir = site.file("");
    site.derive(
        "vm.toml",
        "vm.toml",
        "standby = [",
        &format!("standby = [\"unix:{dir}nobody.sock\", \"unix:{dir}future.sock\", "),
    );
    site.start_gateway(&[]);
    site.start_source();
    site.source().event_where("about nobody", |event| {
        has(
            event,
            &[
                "no standby answers at unix:",
                "nobody.sock",
                "epochgate standby",
            ],
        )
    });
    site.source().event_where("about the version", |event| {
        has(
            event,
            &[
                "version 99",
                "this side version 2;",
                "install the same epochgate on both hosts",
            ],
        )
    });
    let before = site.serial("source").at_work();
    let vm = site.status()["vms"][0].clone();
    assert_eq!(vm["state"], "unprotected", "{vm}");
    assert!(
        vm["message"].as_str().is_some_and(|text| !text.is_empty()),
        "{vm}"
    );
    assert_eq!(site.group()["mode"], "sync");
    drop(future);
    site.start_standby();
    site.source().event(&["protected"]);
    site.serial("source").must_be_content(&before);
}

#[test]
fn a_standby_turns_damaged_greetings_away_and_takes_a_good_source_afterwards() {
    let mut site = Site::new(&Options::default());
    site.start_gateway(&[]);
    site.start_source();
    site.serial("source").at_work();
    // Nobody has connected yet when this one listens, because the source looks elsewhere: see below.
    site.derive("standby.toml", "standby.toml", "standby.sock", "other.sock");
    site.start_standby();
    let listen = site.path().join("other.sock");

    let greeting = br#"{"vm":"vm1","source":"x:1","ram_bytes":1,"machine":{},"cache_bytes":0}"#;
    let good = frame(VERSION, kind::HELLO, "vm1", greeting);
    let mut altered_payload = good.clone();
    altered_payload[frames::HEADER + 9] ^= 1;
    let mut altered_header = good.clone();
    altered_header[30] ^= 1;
    let mut endless = good[..frames::HEADER].to_vec();
    endless[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    for (bytes, words) in [
        (
            altered_payload,
            &["content of a Hello frame", "altered"][..],
        ),
        (altered_header, &["header", "altered"]),
        (endless, &["altered"]),
        (
            frame(99, kind::HELLO, "vm1", greeting),
            &["version 99", "this side version 2;"],
        ),
        (
            frame(VERSION, kind::PAGES, "vm1", greeting),
            &["Pages", "Hello"],
        ),
        (frame(VERSION, 77, "vm1", greeting), &["unknown kind 77"]),
        (
            frame(VERSION, kind::HELLO, "vm1", b"{}"),
            &["greeting that can't be read"],
        ),
        (
            b"GET / HTTP/1.1\r\nHost: standby\r\nUser-Agent: something-else/1.0\r\n\r\n".to_vec(),
            &["does not speak"],
        ),
    ] {
        let refusal = offer(&listen, &bytes).expect("a refusal");
        for word in words {
            assert!(refusal.contains(word), "`{word}` is not in: {refusal}");
        }
    }
    // Cut off in the header, and in the payload: there may be nobody left to tell.
    offer(&listen, &good[..40]);
    offer(&listen, &good[..frames::HEADER + 10]);
    assert!(!site.standby().ended(), "{}", site.standby().log_tail());

    // A wire that flips a bit of the first copy, once; the next attempt goes through.
    spoiling_relay(
        &site.path().join("standby.sock"),
        &listen,
        kind::BASE_PAGES,
        3,
    );
    let lost = site.source().event(&["standby_lost", "protected"]);
    assert_eq!(lost["event"], "standby_lost", "{lost}");
    let discarded = site.standby().event(&["discarded"]);
    let log = site.standby().log();
    assert!(
        log.contains("PackedBase") && log.contains("altered"),
        "{discarded}\n{log}"
    );
    site.source().event(&["protected"]);

    let before = site.serial("source").goes_on();
    let committed = site.kill_source();
    assert!(site.resumed() >= committed);
    site.serial("standby").must_be_content(&before);
}

/// A bit of a checkpoint flips on the wire. What is damaged is never merged: the standby goes on from the epoch before it.
#[test]
fn a_damaged_checkpoint_is_never_merged() {
    let mut site = Site::new(&Options::default());
    site.derive("standby.toml", "standby.toml", "standby.sock", "other.sock");
    let listen = site.path().join("other.sock");
    site.start_gateway(&[]);
    site.start_source();
    let before = site.serial("source").at_work();
    site.start_standby();
    spoiling_relay(&site.path().join("standby.sock"), &listen, kind::PAGES, 40);
    site.source().event(&["protected"]);
    let lost = site.standby().event(&["source_lost"]);
    let reason = lost["reason"].as_str().unwrap();
    assert!(
        reason.contains("Pages") && reason.contains("altered"),
        "{reason}"
    );
    // Both sides are well and have lost each other: whoever comes to the gateway first has the disks.
    let end = site.standby().event(&["resumed", "discarded"]);
    if end["event"] == "resumed" {
        let status = site.source().wait();
        assert_eq!(status.code(), Some(1));
        assert_eq!(site.source().last_event()["event"], "fenced");
        let reported = site.source().last_epoch("committed").unwrap();
        assert!(end["epoch"].as_u64() >= Some(reported), "{reported} {end}");
        site.serial("standby").must_be_content(&before);
    } else {
        site.source().event(&["protected"]);
        site.serial("source").must_be_content(&before);
    }
}
