//! The benches in short form: what they print is what docs/benches.md says, field by field. Nothing is asserted of times.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use epochgate_tests::command::run_for;
use epochgate_tests::paths;
use epochgate_tests::site::vm_lock;
use serde_json::Value;

/// Each boots a few guests without KVM, on a machine that has other work.
const LIMIT_S: u32 = 300;

/// The fields that docs/benches.md has for a bench.
fn documented(bench: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(paths::workspace().join("docs/benches.md")).unwrap();
    let heading = format!("## {bench}\n");
    let section = text.split_once(&heading).expect("a section of its own").1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        let cell = row.split('|').nth(1).unwrap();
        let quoted = cell.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect::<Vec<_>>()
    })
    .collect()
}

/// The places of all values that are neither list nor object, and of empty ones.
fn found(value: &Value, place: &str, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let dot = if place.is_empty() { "" } else { "." };
                found(value, &format!("{place}{dot}{name}"), all);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                found(item, &format!("{place}[]"), all);
            }
        }
        _ => {
            all.insert(place.to_owned());
        }
    }
}

/// What is documented and not there, and what is there and not documented.
fn differences(documented: &BTreeSet<String>, summary: &Value) -> Vec<String> {
    let mut places = BTreeSet::new();
    found(summary, "", &mut places);
    let within = |place: &str, field: &str| {
        let rest = place.strip_prefix(field);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let missing = documented
        .iter()
        .filter(|field| !places.iter().any(|place| within(place, field)))
        .map(|field| format!("documented, not there: {field}"));
    let silent = places
        .iter()
        .filter(|place| !documented.iter().any(|field| within(place, field)))
        .map(|place| format!("there, not documented: {place}"));
    missing.chain(silent).collect()
}

fn bench(name: &str, options: &[&str]) -> Value {
    let _alone = vm_lock();
    let (guest, qemu) = (paths::guest(), paths::qemu());
    let mut args = vec!["bench", name, "--json", "--repeats", "1", "--seconds", "1"];
    args.extend(["--guest", guest.to_str().unwrap(), "--qemu", &qemu]);
    args.extend(options);
    let ended = run_for(LIMIT_S, paths::epochgate(), args).with(0);
    serde_json::from_str(&ended.out).expect("one object of JSON")
}

#[test]
fn the_fields_of_bench_checkpoint_are_those_of_the_documentation() {
    let summary = bench("checkpoint", &["--ram", "128M"]);
    let wrong = differences(&documented("bench checkpoint"), &summary);
    assert!(wrong.is_empty(), "{}\n{summary}", wrong.join("\n"));
    assert!(summary["points"][0]["checkpoints"].as_u64().unwrap() > 0);
}

#[test]
fn the_fields_of_bench_overhead_are_those_of_the_documentation() {
    let summary = bench(
        "overhead",
        &["--memory", "128", "--rates", "20", "--gates", "demand"],
    );
    let wrong = differences(&documented("bench overhead"), &summary);
    assert!(wrong.is_empty(), "{}\n{summary}", wrong.join("\n"));
    let results = summary["results"].as_array().unwrap();
    assert_eq!(results.len(), 7, "five workloads at a rate, two at a gate");
    for result in results {
        let worked = result["pace"]["unprotected"]["median"].as_f64().unwrap();
        assert!(worked > 0.0, "the guest did nothing: {result}");
    }
}

#[test]
fn a_difference_is_noticed() {
    let summary = serde_json::json!({ "a": { "p50": 1 }, "list": [{ "b": null }], "ab": 2 });
    let fields = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(
        differences(&fields(&["a", "list[].b", "ab"]), &summary),
        [""; 0]
    );
    assert_eq!(
        differences(&fields(&["a", "list[].c", "ab"]), &summary),
        [
            "documented, not there: list[].c",
            "there, not documented: list[].b"
        ]
    );
}
