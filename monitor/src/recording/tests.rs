//! What a recording gives back, and what it refuses.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::signals::Signal;

fn header() -> Header {
    Header {
        vm: VmSize {
            vcpus: 2,
            memory_mib: 512,
            disks: 1,
        },
        host: Host {
            qemu: "7.2.22".into(),
            accelerator: "tcg".into(),
            cores: 2,
        },
        load: Some("compile".into()),
        fault: Some(Fault {
            kind: "kernel_panic".into(),
            at_ms: 3_000,
            until_ms: None,
        }),
        phases: vec![Phase {
            name: "boot".into(),
            at_ms: 0,
        }],
        seed: Some(7),
        interval_ms: 1_000,
        started_ms: 1_795_000_000_000,
        tags: [("batch".to_owned(), "1".to_owned())].into(),
        note: "two lines\nof it".into(),
    }
}

fn recording(rows: &[(u32, Vec<(usize, f32)>)]) -> Recording {
    let mut recording = Recording::new(header()).unwrap();
    let mut at = 0;
    for (step, set) in rows {
        at += u64::from(*step);
        let mut values = Values::MISSING;
        for (index, value) in set {
            values.set(Signal::ALL[*index], *value);
        }
        recording.push(at, &values).unwrap();
    }
    recording
}

fn small() -> Recording {
    recording(&[
        (0, vec![(0, 0.0), (5, 1e9)]),
        (1_000, vec![(0, 0.5)]),
        (1_001, vec![]),
    ])
}

proptest! {
    #[test]
    fn what_is_recorded_is_read_again(
        rows in prop::collection::vec(
            (any::<u32>(), prop::collection::vec((0..Signal::COUNT, prop::num::f32::ANY), 0..20)), 0..40)
    ) {
        let made = recording(&rows);
        prop_assert_eq!(Recording::from_bytes(&made.to_bytes().unwrap()).unwrap(), made);
    }

    #[test]
    fn values_keep_their_first_twelve_bits(value in prop::num::f32::NORMAL) {
        let kept = format::keep(value);
        prop_assert!(kept.is_finite());
        prop_assert!(((kept - value) / value).abs() <= 1.0 / 4096.0);
        prop_assert_eq!(format::keep(kept), kept);
    }

    /// Neither a panic nor a recording that was never made.
    #[test]
    fn damage_is_refused(at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut bytes = small().to_bytes().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Recording::from_bytes(&bytes).is_err());
    }

    #[test]
    fn what_is_cut_off_is_refused(at in any::<prop::sample::Index>()) {
        let bytes = small().to_bytes().unwrap();
        prop_assert!(Recording::from_bytes(&bytes[..at.index(bytes.len())]).is_err());
    }
}

#[test]
fn missing_is_not_zero() {
    let read = Recording::from_bytes(&small().to_bytes().unwrap()).unwrap();
    let values: Vec<_> = read
        .samples()
        .iter()
        .map(|s| s.values.get(Signal::ALL[0]))
        .collect();
    assert_eq!(values, [Some(0.0), Some(0.5), None]);
    assert_eq!(read.samples()[2].at_ms, 2_001);
    assert_eq!(read.samples()[2].wall_ms, header().started_ms + 2_001);
}

/// The bytes of `recording` with its header changed, and a checksum that fits.
fn forged(
    recording: &Recording,
    change: impl FnOnce(&mut serde_json::Value),
    body: Option<&[u8]>,
) -> Vec<u8> {
    let bytes = recording.to_bytes().unwrap();
    let length = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let header_end = 12 + length(8);
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[12..header_end]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let own = &bytes[header_end + 4..header_end + 4 + length(header_end)];
    let body = body.unwrap_or(own);
    let mut out = bytes[..8].to_vec();
    for part in [&header, body] {
        out.extend(u32::try_from(part.len()).unwrap().to_le_bytes());
        out.extend(part);
    }
    out.extend(xxhash_rust::xxh3::xxh3_64(&out).to_le_bytes());
    out
}

fn refusal(bytes: &[u8]) -> String {
    Recording::from_bytes(bytes).unwrap_err().to_string()
}

#[test]
fn lies_with_a_right_checksum_are_refused() {
    let small = small();
    assert_eq!(
        Recording::from_bytes(&forged(&small, |_| (), None)).unwrap(),
        small
    );
    type Change = fn(&mut serde_json::Value);
    let cases: &[(Change, &str)] = &[
        (
            |h| h["signals"] = 99.into(),
            "it is of signals version 99; this Epochgate reads versions 1 to 1",
        ),
        (|h| h["samples"] = 4.into(), "its body is shorter"),
        (|h| h["samples"] = 2.into(), "its body: "),
        (
            |h| h["samples"] = 1_000_000_000_u64.into(),
            "its samples may be at most",
        ),
        (
            |h| h["columns"][0] = "vcpu.speed".into(),
            "there is no signal \"vcpu.speed\"",
        ),
        (
            |h| h["columns"].as_array_mut().unwrap().swap(0, 1),
            "not in order",
        ),
        (
            |h| h["run"]["interval_ms"] = 1.into(),
            "the interval is not from",
        ),
        (
            |h| h["run"]["load"] = "x".repeat(1000).into(),
            "more than 128 bytes",
        ),
        (
            |h| h["run"]["fault"]["until_ms"] = 1.into(),
            "ends before it begins",
        ),
        (
            |h| h["run"]["surprise"] = 1.into(),
            "unknown field `surprise`",
        ),
    ];
    for (change, expected) in cases {
        let message = refusal(&forged(&small, *change, None));
        assert!(
            message.contains(expected),
            "{message:?} is not {expected:?}"
        );
    }
}

#[test]
fn a_body_that_unpacks_to_more_than_its_header_says_is_refused() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 3).unwrap();
    let message = refusal(&forged(&small(), |_| (), Some(&bomb)));
    assert!(message.contains("its body: "), "{message}");
}

#[test]
fn a_value_that_is_no_number_is_refused() {
    let mut body = vec![0; 36];
    // The highest bytes of the first value: infinity.
    body[12 + 9] = 0x7f;
    body[12 + 6] = 0x80;
    let body = zstd::bulk::compress(&body, 3).unwrap();
    assert!(refusal(&forged(&small(), |_| (), Some(&body))).contains("a value is no number"));
}

#[test]
fn other_files_are_refused_as_such() {
    assert_eq!(
        refusal(b""),
        "this is no recording: it does not begin as one"
    );
    assert_eq!(
        refusal(&[0; 100]),
        "this is no recording: it does not begin as one"
    );
    let mut newer = small().to_bytes().unwrap();
    newer[6] = 2;
    assert_eq!(
        refusal(&newer),
        "it is of format version 2; this Epochgate reads versions 1 to 1"
    );
}

#[test]
fn a_folder_is_a_data_set() {
    let dir = tempfile::tempdir().unwrap();
    small().save(&dir.path().join("b.egrec")).unwrap();
    recording(&[]).save(&dir.path().join("a.egrec")).unwrap();
    std::fs::write(dir.path().join("DATASHEET.md"), "# What this is").unwrap();
    let set = DataSet::load(dir.path()).unwrap();
    let names: Vec<_> = set
        .entries
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(set.entries[1].recording, small());
    let files = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 3, "nothing unfinished is left");

    std::fs::write(dir.path().join("c.egrec"), "EGREC\n").unwrap();
    let error = DataSet::load(dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("c.egrec: it can't be used"),
        "{error}"
    );
}

#[test]
fn samples_come_in_the_order_of_time_and_end() {
    let mut small = small();
    assert!(matches!(
        small.push(2_000, &Values::MISSING),
        Err(RecordingError::Order {
            at_ms: 2_000,
            last: 2_001
        })
    ));
    for _ in small.samples().len()..MAX_SAMPLES {
        small.push(3_000, &Values::MISSING).unwrap();
    }
    assert!(matches!(
        small.push(3_000, &Values::MISSING),
        Err(RecordingError::Full)
    ));
}
