//! The standby is lost: the VM runs on, unprotected and on plain disks; what the lost one held can never be resumed; a new
//! one is filled from the beginning, and then protects.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use epochgate_tests::control::post;
use epochgate_tests::site::{Options, Site, VM};
use serde_json::json;

#[test]
fn a_lost_standby_is_replaced_and_its_memory_is_never_resumed() {
    let mut site = Site::new(&Options::default());
    site.start_gateway(&[]);
    site.start_source();
    site.serial("source").at_work();
    let first = site.start_standby();
    site.source().event(&["protected"]);
    let group = site.group();
    assert_eq!(group["mode"], "async", "{group}");
    assert_eq!(group["holder"], *first, "{group}");

    site.standby().kill();
    site.source().event(&["standby_lost"]);
    let unprotected = site.source().event(&["unprotected", "fenced"]);
    assert_eq!(unprotected["event"], "unprotected", "{unprotected}");
    let before = site.serial("source").goes_on();
    let status = site.status();
    let (vm, group) = (&status["vms"][0], &status["gateway"]["groups"][0]);
    assert_eq!(
        (&vm["role"], &vm["state"]),
        (&json!("source"), &json!("unprotected"))
    );
    assert_eq!(group["mode"], "sync", "{group}");
    assert!(
        group["holder"].is_null() && group["open"].is_null(),
        "{group}"
    );
    let seeking = site.source().event(&["seeking_standby"]);
    assert!(
        seeking["reason"]
            .as_str()
            .unwrap()
            .contains("is `epochgate standby` running there?"),
        "{seeking}"
    );

    // The disks have gone on without its memory.
    let path = format!("/v1/groups/{VM}/takeover");
    let (status, reply) = post(&site.control(), &path, &json!({ "standby": first }));
    assert_eq!(
        (status, &reply["error"]["kind"]),
        (409, &json!("memory_stale")),
        "{reply}"
    );
    assert_eq!(site.group()["generation"], group["generation"]);
    site.serial("source").must_be_content(&before);

    let second = site.start_standby();
    assert_ne!(first, second);
    // All of the memory once more.
    let copied = site.source().event_where("the end of the copy", |event| {
        event["event"] == "first_copy" && event["done"] == event["total"]
    });
    assert_eq!(copied["total"], 256 << 20, "{copied}");
    let protected = site.source().event(&["protected"]);
    assert_eq!(protected["standby"], *second);
    assert_eq!(site.group()["holder"], *second);
    let (status, reply) = post(&site.control(), &path, &json!({ "standby": first }));
    assert_eq!(
        (status, &reply["error"]["kind"]),
        (409, &json!("other_holder")),
        "{reply}"
    );

    let before = site.serial("source").goes_on();
    let committed = site.kill_source();
    assert!(site.resumed() >= committed);
    site.serial("standby").must_be_content(&before);
}

/// With `on_standby_loss = "pause"` the guest does nothing that is not protected.
#[test]
fn a_vm_that_must_not_run_unprotected_waits_for_the_next_standby() {
    let mut site = Site::new(&Options::default());
    site.derive(
        "vm.toml",
        "vm.toml",
        "interval_ms",
        "on_standby_loss = \"pause\"\ninterval_ms",
    );
    let before = site.start_protected(&[]);
    site.standby().kill();
    site.source().event(&["unprotected"]);
    // Whatever it still does after this line would show as writes at the gateway.
    let writes = |site: &Site| {
        let disks = site.group()["disks"].clone();
        disks
            .as_array()
            .unwrap()
            .iter()
            .map(|disk| disk["writes"].as_u64().unwrap())
            .sum::<u64>()
    };
    let held = writes(&site);
    site.source().event(&["seeking_standby"]);
    assert_eq!(writes(&site), held, "the guest writes without protection");
    site.start_standby();
    site.source().event(&["protected"]);
    site.serial("source").must_be_content(&before);
    assert!(writes(&site) > held);
}
