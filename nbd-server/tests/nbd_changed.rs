//! Metadata contexts with a point in time on the wire: several at once, with payloads, for libnbd's tools and for QEMU.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_possible_truncation
)]

mod group_common;
mod nbd_common;
mod past_common;

use std::collections::BTreeMap;
use std::sync::Arc;

use group_common::{BLOCK, SIZE, until};
use nbd_common::extended::{BLOCK_STATUS, Extended, PAYLOAD_LEN, REQ_ONE, status};
use nbd_common::{run, run_well};
use nbd_server::group::history::HistoryConfig;
use past_common::{FIRST, two_pins};

#[test]
fn several_contexts_are_answered_together_and_more_are_not_selected() {
    let (running, a, b) = two_pins();
    let (since_a, since_b) = (
        format!("x-epochgate:changed-since:{a}"),
        format!("qemu:dirty-bitmap:epoch={b}"),
    );
    let queries = [
        "qemu:dirty-bitmap:b",
        "base:allocation",
        &since_a,
        "x-epochgate:changed-since:pin=a",
        &since_b,
        "qemu:dirty-bitmap:pin=b",
    ];
    let mut client = Extended::attach(&running.socket(), "vm/root", &queries);
    let chunks = client.ask(BLOCK_STATUS, 0, 0, SIZE, &[]);
    let found: BTreeMap<u32, Vec<(u64, u64)>> = chunks.iter().map(status).collect();
    let (page, rest) = (BLOCK as u64, SIZE - 5 * BLOCK as u64);
    let of_a = vec![(page, 0), (2 * page, 1), (page, 0), (page, 1), (rest, 0)];
    let of_b = vec![(4 * page, 0), (page, 1), (rest, 0)];
    // The fifth has no place.
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
    for (id, expected) in [(3, &of_b), (4, &of_a), (5, &of_a), (6, &of_b)] {
        assert_eq!(&found[&id], expected, "context {id}");
    }
    // By a payload only some of them are asked for, and in one piece.
    let mut payload = (3 * page).to_be_bytes().to_vec();
    [4_u32, 6]
        .iter()
        .for_each(|id| payload.extend(id.to_be_bytes()));
    let len = payload.len() as u64;
    let chunks = client.ask(BLOCK_STATUS, PAYLOAD_LEN | REQ_ONE, page, len, &payload);
    let found: Vec<_> = chunks.iter().map(status).collect();
    assert_eq!(found, [(4, vec![(2 * page, 1)]), (6, vec![(3 * page, 0)])]);
    let mut other = 4096_u64.to_be_bytes().to_vec();
    other.extend(2_u32.to_be_bytes());
    let refused = client.error(BLOCK_STATUS, PAYLOAD_LEN, 0, other.len() as u64, &other);
    assert_eq!(refused, 22, "held was not selected");
}

#[test]
fn a_point_is_kept_as_long_as_its_client_stays() {
    let (running, a, _) = two_pins();
    let past = Arc::clone(&running.group().history().unwrap().past);
    let context = format!("qemu:dirty-bitmap:{a}");
    let mut client = Extended::attach(&running.socket(), "vm/root", &[&context]);
    past.unpin("a").unwrap();
    past.unpin("b").unwrap();
    // All that is old goes.
    let nothing = HistoryConfig {
        age: "1s".parse().unwrap(),
        ..HistoryConfig::default()
    };
    let later = nbd_server::group::history::now_ms() + 3_600_000;
    let trim = || {
        while !past
            .maintain(later, &nothing.retention())
            .unwrap()
            .is_nothing()
        {}
    };
    trim();
    let chunks = client.ask(BLOCK_STATUS, 0, 0, 4 * BLOCK as u64, &[]);
    let page = BLOCK as u64;
    let expected = vec![(page, 0), (2 * page, 1), (page, 0)];
    assert_eq!(status(&chunks[0]), (FIRST, expected));
    drop(client);
    until(|| running.group().connections() == 0);
    trim();
    let mut client = Extended::attach(&running.socket(), "vm/root", &[&context]);
    assert_eq!(client.error(BLOCK_STATUS, 0, 0, SIZE, &[]), 22);
}

#[test]
fn libnbd_and_nbdinfo_see_what_changed() {
    let (running, a, b) = two_pins();
    let names: Vec<String> = ["a", "b"]
        .iter()
        .flat_map(|pin| {
            [
                format!("x-epochgate:changed-since:pin={pin}"),
                format!("qemu:dirty-bitmap:{pin}"),
            ]
        })
        .collect();
    let script = format!(
        r#"
import nbd
uri, past, names = {:?}, {:?}, {names:?}
def listed(where, *queries):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(where)
    for query in queries:
        h.add_meta_context(query)
    found = []
    h.opt_list_meta_context(lambda name: found.append(name) and 0)
    h.opt_abort()
    return found
assert listed(uri) == ["base:allocation", "epochgate:held"] + names, listed(uri)
assert listed(uri, "qemu:") == names[1::2]
assert listed(uri, "qemu:dirty-bitmap:") == names[1::2]
assert listed(uri, "x-epochgate:") == names[::2]
assert listed(uri, "x-epochgate:changed-since:{a}", "qemu:dirty-bitmap:c", names[0]) == [names[0], "x-epochgate:changed-since:{a}"]
# Of the past there are only the points up to it.
assert listed(past, "qemu:") == names[1::2]
assert listed(past.replace("pin=b", "pin=a"), "qemu:", "qemu:dirty-bitmap:b") == names[1:2]

h = nbd.NBD()
wanted = ["qemu:dirty-bitmap:a", "x-epochgate:changed-since:time=2100-01-01T00:00:00Z"]
unknown = ["qemu:dirty-bitmap:c", "x-epochgate:changed-since:999999", "x-epochgate:changed-since:time=1999-01-01T00:00:00Z"]
for name in wanted + unknown:
    h.add_meta_context(name)
h.connect_uri(uri)
assert all(h.can_meta_context(name) for name in wanted)
assert not any(h.can_meta_context(name) for name in unknown)
found = {{}}
h.block_status(8 * 4096, 0, lambda context, offset, extents, error: found.update({{context: list(extents)}}) and 0)
assert found[wanted[0]] == [4096, 0, 8192, 1, 4096, 0, 4096, 1, 12288, 0], found

h = nbd.NBD()
late = "qemu:dirty-bitmap:epoch=" + str({b} + 1)
for name in ["qemu:dirty-bitmap:a", late]:
    h.add_meta_context(name)
h.connect_uri(past)
assert h.can_meta_context("qemu:dirty-bitmap:a") and not h.can_meta_context(late)
h.block_status(8 * 4096, 0, lambda context, offset, extents, error: found.update({{context: list(extents)}}) and 0)
assert found[wanted[0]] == [4096, 0, 8192, 1, 20480, 0], found
"#,
        running.uri("vm/root"),
        running.uri("vm/root@pin=b"),
    );
    run_well("/usr/bin/python3", &["-c", &script]);
    let uri = running.uri("vm/root@pin=b");
    let map = run_well("nbdinfo", &["--map=qemu:dirty-bitmap:a", "--json", &uri]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let extents: Vec<_> = map.as_array().unwrap().iter().collect();
    let parts: Vec<_> = extents
        .iter()
        .map(|extent| (extent["offset"].as_u64().unwrap(), extent["type"].as_u64()))
        .collect();
    assert_eq!(parts, [(0, Some(0)), (4096, Some(1)), (3 * 4096, Some(0))]);
}

#[test]
fn qemu_takes_them_for_its_dirty_bitmaps() {
    let (running, _, _) = two_pins();
    let image = |bitmap: &str, export: &str| {
        format!(
            "driver=raw,file.driver=nbd,file.export={export},file.server.type=unix,file.server.path={},\
             file.x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}",
            running.socket().display()
        )
    };
    let map = |image: &str| run("qemu-img", &["map", "--output=json", "--image-opts", image]);
    let parts = |image: &str| -> Vec<(u64, u64, bool)> {
        let output = map(image);
        assert!(output.status.success(), "{output:?}");
        let map: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |extent: &serde_json::Value, key: &str| extent[key].as_u64().unwrap();
        let part = |extent: &serde_json::Value| {
            // QEMU takes bit 0 for a hole: what is dirty is what has no data.
            let dirty = extent["data"] == false;
            (number(extent, "start"), number(extent, "length"), dirty)
        };
        map.as_array().unwrap().iter().map(part).collect()
    };
    let page = BLOCK as u64;
    assert_eq!(
        parts(&image("a", "vm/root@pin=b")),
        [
            (0, page, false),
            (page, 2 * page, true),
            (3 * page, SIZE - 3 * page, false)
        ]
    );
    assert_eq!(
        parts(&image("pin=b", "vm/root")),
        [
            (0, 4 * page, false),
            (4 * page, page, true),
            (5 * page, SIZE - 5 * page, false)
        ]
    );
    // It refuses one that it does not get, in different words from release to release.
    let unknown = map(&image("c", "vm/root"));
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert_eq!(unknown.status.code(), Some(1), "{said}");
    assert!(said.contains("Could not open"), "{said}");
}
