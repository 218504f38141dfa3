//! Output commit (invariant 5) as somebody outside sees it: what the guest has told anybody survives a failover, and
//! established connections live on. And the tests can tell: with `output = "pass"` they find losses.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use epochgate_tests::client::Client;
use epochgate_tests::site::{Options, Site};
use epochgate_tests::waiting::wait_until;

fn options(output: &'static str, interval_ms: u64) -> Options {
    Options {
        output: Some(output),
        interval_ms,
        ..Options::default()
    }
}

/// Kills the source in the middle of an epoch that is not committed. What the client says of its connection.
fn a_failover_under_a_client(output: &'static str) -> (Result<(), String>, Site) {
    // Long epochs: at the kill much was said since the last commit.
    let mut site = Site::new(&options(output, 400));
    site.start_protected(&[]);
    let asked = Client::default();
    let said = std::thread::scope(|scope| {
        let client = site.lan().beside(scope, || asked.ask());
        let asking = asked.asking();
        asked.wait_for_more(20);
        site.source().event(&["committed"]);
        std::thread::sleep(Duration::from_millis(250));
        site.kill_source();
        site.resumed();
        wait_until(
            "answers after the failover, or the end of the connection",
            || {
                let before = asked.answers();
                std::thread::sleep(Duration::from_millis(200));
                let goes_on = asked.answers() > before + 5;
                (goes_on || client.is_finished()).then_some(())
            },
            String::new,
        );
        drop(asking);
        client.join().unwrap()
    });
    (said, site)
}

#[test]
fn a_connection_lives_through_a_failover() {
    let (said, site) = a_failover_under_a_client("hold");
    assert_eq!(said, Ok(()));
    let verdict = site.serial("standby").latest().unwrap();
    assert!(verdict.good(), "{verdict:?}");
}

/// Without the gate the client has asked answers that are rolled back: the test above can fail.
#[test]
fn without_the_gate_the_client_notices() {
    let (said, _site) = a_failover_under_a_client("pass");
    assert!(said.is_err(), "nothing was lost, although nothing was held");
}

/// No packet of epoch N leaves before commit record N, none is lost while nothing fails, and their order is kept.
#[test]
fn no_packet_leaves_before_the_record_of_its_epoch() {
    let mut site = Site::new(&options("hold", 100));
    let capture = site.lan().capture();
    site.start_protected(&[]);
    let asked = Client::default();
    std::thread::scope(|scope| {
        let client = site.lan().beside(scope, || asked.ask());
        let asking = asked.asking();
        asked.wait_for_more(50);
        drop(asking);
        assert_eq!(client.join().unwrap(), Ok(()));
    });
    let last = site.source().last_epoch("committed").unwrap();
    let events = site.source().events();
    let frames = capture.end();

    let beacons: Vec<u64> = frames.iter().filter_map(|f| f.beacon()).collect();
    assert!(beacons.len() > 100, "{} beacons", beacons.len());
    assert!(
        beacons.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "out of order, or one is missing: {beacons:?}"
    );

    let of = |name: &'static str| events.iter().filter(move |event| event["event"] == name);
    let mut checked = 0;
    let mut before = None;
    for captured in of("captured") {
        let epoch = captured["epoch"].as_u64().unwrap();
        let packets = captured["output_packets"].as_u64().unwrap();
        let first = before.replace(packets);
        let committed = of("committed").find(|event| event["epoch"] == epoch);
        let (Some(first), Some(committed)) = (first, committed) else {
            // The first epoch has packets from before the gate held any.
            continue;
        };
        let record = committed["t_us"].as_u64().unwrap();
        for number in first..packets {
            let Some(frame) = frames.get(usize::try_from(number).unwrap()) else {
                // The capture ended before it came.
                assert!(
                    epoch + 2 >= last,
                    "packet {number} of epoch {epoch} never came"
                );
                break;
            };
            assert!(
                frame.t_us >= record,
                "packet {number} of epoch {epoch} left {} us before its record",
                record - frame.t_us
            );
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} packets were looked at");
}

/// A packet that waits brings the next checkpoint forward.
#[test]
fn on_demand_an_answer_does_not_wait_for_the_interval() {
    let mut site = Site::new(&Options {
        rhythm: "demand",
        ..options("hold", 5_000)
    });
    site.start_protected(&[]);
    let asked = Client::default();
    std::thread::scope(|scope| {
        let client = site.lan().beside(scope, || asked.ask());
        let asking = asked.asking();
        // Each answer needs a commit: at the interval alone this would take minutes, and the patience of tests is shorter.
        asked.wait_for_more(100);
        site.kill_source();
        site.resumed();
        asked.wait_for_more(20);
        drop(asking);
        assert_eq!(client.join().unwrap(), Ok(()));
    });
}
