//! Evaluation on plain values: nothing that is judged was learnt from, and figures are counted as they should be. No figure of it says
//! anything of real VMs.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::outcome::Outcome;
use super::*;
use crate::features;
use crate::learn::tests::data_set;
use crate::learn::{Label, Row, Run, Scored, alarm_threshold};

#[test]
fn folds_never_learn_from_what_they_judge() {
    let mut table = Table::of(&data_set());
    // Two of one family, with different loads and faults.
    table.runs[1].family = Some(7);
    table.runs[5].family = Some(7);
    for scheme in Scheme::ALL {
        let folds = folds::folds(&table, scheme, 1);
        let mut judged: Vec<usize> = folds.iter().flat_map(|fold| fold.test.clone()).collect();
        judged.sort_unstable();
        assert_eq!(judged, (0..table.runs.len()).collect::<Vec<_>>());
        for fold in &folds {
            for train in &fold.train {
                assert!(!fold.test.contains(train));
                let (run, tests) = (&table.runs[*train], fold.test.iter());
                for test in tests.map(|at| &table.runs[*at]) {
                    assert_ne!(run.family, test.family);
                    match scheme {
                        Scheme::Loads => assert_ne!(run.load, test.load),
                        Scheme::Faults => assert!(run.fault.is_none() || run.fault != test.fault),
                    }
                }
            }
        }
    }
}

#[test]
fn a_report_has_the_shape_that_is_promised() {
    let table = Table::of(&data_set());
    let options = Options {
        rows: 200,
        ..Options::default()
    };
    let rivals = Rival::all(options.method, false);
    let report = evaluate(&table, &[], options, &rivals, 2, &|_, _| ()).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    for scheme in ["unseen_loads", "unseen_faults"] {
        for figure in ["f1", "auc", "precision", "recall"] {
            assert!(
                json[scheme][figure].is_number(),
                "{scheme} {figure}: {json}"
            );
        }
        for rival in ["fixed_thresholds", "without_dirty", "novelty"] {
            assert!(json["baselines"][rival][scheme].is_object(), "{rival}");
        }
    }
    assert!(json["false_alarms_per_vm_day"].is_number());
    assert!(json["detection_delay_s"].get("p90").is_some());
    assert_eq!(json["detection_delay_s"]["of"], 12);
    assert_eq!(json["classifiers"].as_object().unwrap().len(), 3);
    for kind in ["dead", "spin"] {
        let of = &json["kinds"][kind];
        assert_eq!((&of["of"], &of["unseen"]["of"]), (&6.into(), &6.into()));
        assert!(of["named_rightly"].is_number(), "{of}");
    }
    for load in ["a", "bb", "cccc"] {
        assert_eq!(json["loads"][load]["of"], 4, "{json}");
    }
    for figures in ["kinds", "loads"] {
        let all = json[figures].as_object().unwrap();
        let found: u64 = all.values().map(|of| of["found"].as_u64().unwrap()).sum();
        assert_eq!(json["detection_delay_s"]["found"], found, "{figures}");
    }
    // Everybody has a curve for each scheme, the main model before all others; its recordings are there for pictures.
    assert_eq!(report.curves.len(), 2 * 6);
    assert_eq!(report.curves[0].rival, "forest");
    let lines: usize = report.outcomes.iter().map(|o| o.lines.len()).sum();
    assert_eq!(lines, table.runs.len());
    let line = |line: &TimeLine| line.found.is_some() && line.fault.is_none();
    assert!(!report.outcomes.iter().any(|o| o.lines.iter().any(line)));
}

/// So many seconds, with a fault from a second on or without one.
fn run(seconds: u64, fault_at: Option<u64>) -> Run {
    let row = |second: u64| Row {
        values: vec![0.0; features::features().len()],
        at_ms: second * 1000,
        label: match fault_at {
            Some(at) if second >= at => Label::Faulty,
            _ => Label::Normal,
        },
    };
    Run {
        name: "one".to_owned(),
        load: "idle".to_owned(),
        also: Vec::new(),
        fault: fault_at.map(|_| "dead".to_owned()),
        fault_at_ms: fault_at.map(|at| at * 1000),
        family: None,
        rows: (0..seconds).map(row).collect(),
        interval_ms: 1000,
    }
}

proptest! {
    /// Thresholds are chosen as verdicts are passed: the lowest with which a judge of the recording says nothing.
    #[test]
    fn an_alarm_threshold_is_the_lowest_without_a_false_alarm(
        scores in prop::collection::vec(1_u8..90, 1..60),
        (k, n) in (1_u32..6).prop_flat_map(|n| (n / 2 + 1..=n, Just(n))),
    ) {
        let run = run(scores.len() as u64, None);
        let scored: Scored = scores.iter().map(|score| (f32::from(*score) / 100.0, Label::Normal)).collect();
        let false_alarms = |alarm: f32| {
            let mut outcome = Outcome::new("idle");
            // No hysteresis: what comes after the first alarm is of no interest.
            outcome.judge(&run, &scored, alarm, alarm, k, n);
            outcome.false_alarms
        };
        let alarm = alarm_threshold(std::slice::from_ref(&scored), 0.0, k, n);
        prop_assert_eq!(false_alarms(alarm), 0);
        if scores.len() >= k as usize {
            prop_assert!(false_alarms(alarm - 0.002) > 0, "{} is not the lowest", alarm);
        }
    }
}

#[test]
fn a_verdict_needs_k_of_n_both_ways() {
    let scores = [0.9, 0.9, 0.1, 0.8, 0.8, 0.5, 0.4, 0.1, 0.1, 0.1];
    let run = run(scores.len() as u64, None);
    let scored: Scored = scores.iter().map(|score| (*score, Label::Normal)).collect();
    let mut outcome = Outcome::new("idle");
    outcome.judge(&run, &scored, 0.4, 0.8, 3, 4);
    let said: Vec<bool> = outcome.lines[0].points.iter().map(|p| p.2).collect();
    let expected = [
        false, false, false, true, true, true, true, true, true, false,
    ];
    assert_eq!(said, expected);
}

#[test]
fn a_verdict_that_does_not_last_is_an_alarm_and_no_action() {
    // Healthy for two minutes, called ill for ten seconds and for forty; then a fault, found after eight.
    let run = run(180, Some(120));
    let scored: Scored = run
        .rows
        .iter()
        .map(|row| {
            let ill = matches!(row.at_ms / 1000, 20..30 | 50..90 | 128..);
            (if ill { 0.9 } else { 0.1 }, row.label)
        })
        .collect();
    let mut outcome = Outcome::new("idle");
    outcome.judge(&run, &scored, 0.5, 0.8, 4, 5);
    assert_eq!((outcome.false_alarms, outcome.false_actions), (2, 1));
    assert_eq!(outcome.delays, [("dead".to_owned(), Some(11.0))]);
    assert_eq!(outcome.acted_on, 1);
}
