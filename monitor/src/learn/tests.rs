//! Learning from plain values: a VM that stops to answer is told from one that answers, whatever its load is.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use super::draw::random;
use super::*;
use crate::features::Extractor;
use crate::model::{Method, Model};
use crate::recording::{DataSet, Entry, Fault, Header, Host, Recording, VmSize};
use crate::sample::Values;
use crate::signals::Signal;

/// A recording of 120 s made up of plain values. With a fault the guest falls silent at 70 s: `dead` without CPU, `spin` with all of it.
pub(crate) fn recording(number: u64, load: &str, fault: Option<&str>) -> Entry {
    let at_ms = 70_000;
    let header = Header {
        vm: VmSize::default(),
        host: Host {
            qemu: "7.2".to_owned(),
            accelerator: "tcg".to_owned(),
            cores: 2,
        },
        load: Some(load.to_owned()),
        fault: fault.map(|kind| Fault {
            kind: kind.to_owned(),
            at_ms,
            until_ms: None,
        }),
        phases: Vec::new(),
        seed: Some(number),
        interval_ms: 1000,
        started_ms: 0,
        tags: Default::default(),
        note: String::new(),
    };
    let mut recording = Recording::new(header).unwrap();
    let busy = 0.1 + 0.2 * load.len() as f32 / 4.0;
    for second in 1..=120 {
        let ill = fault.filter(|_| second * 1000 >= at_ms);
        let noise = |what: u64| 0.8 + 0.4 * random(number * 10 + what, second) as f32;
        let mut values = Values::MISSING;
        let cpu = match ill {
            Some("spin") => 1.0,
            Some(_) => 0.01,
            None => busy * noise(1),
        };
        let out = if ill.is_some() {
            0.0
        } else {
            100.0 * busy * noise(2)
        };
        for (signal, value) in [
            (Signal::VcpuRunMean, cpu),
            (Signal::VcpuWaitMean, 0.0),
            (Signal::NetOutPackets, out),
            (Signal::NetInPackets, 100.0 * busy * noise(3)),
            (Signal::DirtyShare, cpu * 0.01 * noise(4)),
        ] {
            values.set(signal, value);
        }
        recording.push(second * 1000, &values).unwrap();
    }
    Entry {
        name: format!("{number:03}"),
        recording,
    }
}

/// Three loads, two kinds of fault, each with the other.
pub(crate) fn data_set() -> DataSet {
    let mut entries = Vec::new();
    for round in 0..2 {
        for load in ["a", "bb", "cccc"] {
            for fault in [None, Some("dead"), Some("spin")] {
                entries.push(recording(entries.len() as u64 + round * 100, load, fault));
            }
        }
    }
    DataSet { entries }
}

fn options(method: Method) -> Options {
    Options {
        method,
        rows: 300,
        ..Options::default()
    }
}

#[test]
fn a_model_tells_sick_from_busy_and_names_the_kind() {
    let table = Table::of(&data_set());
    let members: Vec<usize> = (0..table.runs.len()).collect();
    for method in Method::ALL {
        let model = train(&table, &members, options(method)).unwrap();
        let again = train(&table, &members, options(method)).unwrap();
        assert_eq!(model.to_bytes().unwrap(), again.to_bytes().unwrap());
        let model = Model::from_bytes(&model.to_bytes().unwrap()).unwrap();
        assert_eq!(model.header().kinds, ["dead", "spin"]);
        assert!(model.header().training.auc > 0.9, "{method:?}");
        for fault in [None, Some("dead"), Some("spin")] {
            let fresh = recording(999, "bb", fault);
            let mut extractor = Extractor::default();
            let samples = fresh.recording.samples();
            let last = samples
                .iter()
                .filter_map(|s| extractor.push(s))
                .last()
                .unwrap();
            let judged = model.judge(&last);
            assert_eq!(
                judged.faulty,
                fault.is_some(),
                "{method:?} {fault:?} {judged:?}"
            );
            if let Some(fault) = fault {
                assert_eq!(judged.kinds[0].0, fault);
                assert!(!judged.reasons.is_empty());
            }
        }
    }
}

#[test]
fn one_label_alone_teaches_nothing() {
    let table = Table::of(&DataSet {
        entries: vec![recording(1, "a", None)],
    });
    let refused = train(&table, &[0], options(Method::Forest)).unwrap_err();
    assert!(refused.to_string().contains("faulty"), "{refused}");
}

#[test]
fn without_dirty_there_is_no_feature_of_it() {
    let table = Table::of(&data_set());
    let members: Vec<usize> = (0..table.runs.len()).collect();
    let with = |dirty| {
        let options = Options {
            dirty,
            kinds: false,
            ..options(Method::Forest)
        };
        train(&table, &members, options)
            .unwrap()
            .header()
            .features
            .clone()
    };
    assert!(with(true).iter().any(|name| name.starts_with("dirty.")));
    assert!(!with(false).iter().any(|name| name.starts_with("dirty.")));
}

#[test]
fn labels_follow_the_fault() {
    let table = Table::of(&data_set());
    let run = table.runs.iter().find(|run| run.fault.is_some()).unwrap();
    let label = |second: u64| {
        run.rows
            .iter()
            .find(|r| r.at_ms == second * 1000)
            .unwrap()
            .label
    };
    assert_eq!(label(69), Label::Normal);
    assert_eq!(label(70), Label::Between);
    assert_eq!(label(74), Label::Between);
    assert_eq!(label(75), Label::Faulty);
}

#[test]
fn one_odd_recording_does_not_decide_about_alarms() {
    // Healthy recordings whose windows reach 0.3 together, but for some that are like faults; single windows reach 0.9.
    let run = |level: f32| -> Scored {
        let score = |at: usize| if at.is_multiple_of(7) { 0.9 } else { level };
        (0..60).map(|at| (score(at), Label::Normal)).collect()
    };
    let with = |odd: usize, all: usize| {
        let runs: Vec<Scored> = (0..all)
            .map(|at| run(if at < odd { 0.8 } else { 0.3 }))
            .collect();
        alarm_threshold(&runs, 0.2, 4, 5)
    };
    assert_eq!(with(0, 40), with(1, 40));
    assert!(with(0, 40) > 0.3 && with(0, 40) < 0.31);
    assert!(with(2, 40) > 0.8, "two of forty are not odd");
    assert!(with(1, 20) > 0.8, "one of twenty is not, either");
    // What is faulty says nothing of alarms.
    let faulty: Scored = (0..60).map(|_| (0.95, Label::Faulty)).collect();
    assert_eq!(alarm_threshold(&[faulty], 0.2, 4, 5), 0.2);
    assert_eq!(alarm_threshold(&[], 0.2, 4, 5), 0.2);
}
