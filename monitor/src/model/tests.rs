//! Models that were put together by hand: what they say, and that no file is taken that could not be judged with.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::features::{FEATURES_VERSION, Window};
use crate::signals::SIGNALS_VERSION;

fn header(method: Method) -> Header {
    Header {
        features_version: FEATURES_VERSION,
        signals_version: SIGNALS_VERSION,
        method,
        features: ["net.answers.change", "cpu.demand.level", "kvm.exits.level"]
            .map(str::to_owned)
            .to_vec(),
        kinds: vec!["network_dead".to_owned()],
        verdict: Thresholds {
            threshold: 0.5,
            alarm: 0.7,
            k: 4,
            n: 5,
        },
        training: Training::default(),
    }
}

/// Faulty if few packets are answered, and more so if there is CPU in use.
fn stump() -> Trees {
    let leaf = |value| Node { value, split: None };
    let ask = |value, feature, threshold, left, right| Node {
        value,
        split: Some(Split {
            feature,
            threshold,
            left,
            right,
        }),
    };
    let tree = Tree::new(vec![
        ask(0.4, 0, -1.0, 1, 2),
        ask(0.8, 1, 0.5, 3, 4),
        leaf(0.1),
        leaf(0.6),
        leaf(0.9),
    ]);
    Trees {
        base: 0.0,
        scale: 1.0,
        trees: vec![tree.unwrap()],
    }
}

fn novelty() -> Novelty {
    Novelty {
        mean: vec![0.0; 3],
        scale: vec![1.0; 3],
        known: vec![vec![0.0, 0.0, 0.0], vec![-2.0, 1.0, 0.0]],
        threshold: 1.0,
    }
}

fn model() -> Model {
    let trees = Classifier::Trees(stump());
    Model::new(header(Method::Forest), trees, vec![stump()], novelty()).unwrap()
}

fn window(answers: f32, demand: f32) -> Window {
    let all = features::features();
    let mut window = Window {
        at_ms: 0,
        values: vec![0.0; all.len()],
        there: vec![true; all.len()],
        missing: Vec::new(),
    };
    window.values[features::named("net.answers.change").unwrap()] = answers;
    window.values[features::named("cpu.demand.level").unwrap()] = demand;
    window
}

#[test]
fn a_window_is_judged_with_what_speaks_for_it() {
    let judged = model().judge(&window(-2.0, 1.0));
    assert_eq!((judged.score, judged.faulty), (0.9, true));
    assert_eq!(judged.kinds[0].0, "network_dead");
    assert_eq!(judged.reasons.len(), 2);
    assert_eq!(judged.reasons[0].feature, "net.answers.change");
    assert!((judged.reasons[0].adds - 0.4).abs() < 1e-6);
    assert!(judged.reasons[0].words.contains("less than"));
    assert_eq!((judged.confidence, judged.novelty), (1.0, 0.0));
    let judged = model().judge(&window(0.0, 1.0));
    assert_eq!((judged.score, judged.faulty), (0.1, false));
    assert_eq!(judged.reasons[0].feature, "net.answers.change");
    assert!(model().judge(&window(8.0, 8.0)).novelty > 1.0);
}

#[test]
fn what_is_missing_lowers_confidence_by_its_weight() {
    let mut one = window(-2.0, 1.0);
    one.there[features::named("cpu.demand.level").unwrap()] = false;
    one.missing = vec![crate::Source::Process, crate::Source::Kvm];
    let judged = model().judge(&one);
    // One question at the root, one below it.
    assert!((judged.confidence - 2.0 / 3.0).abs() < 1e-6);
    // No tree asks KVM anything.
    assert_eq!(judged.missing, [crate::Source::Process]);
}

#[test]
fn what_is_written_is_read() {
    let linear = Classifier::Linear(Linear {
        mean: vec![0.5; 3],
        scale: vec![2.0; 3],
        weights: vec![-1.0, 0.25, 0.0],
        intercept: 0.125,
    });
    let linear = Model::new(header(Method::Logistic), linear, vec![stump()], novelty()).unwrap();
    for model in [model(), linear] {
        let again = Model::from_bytes(&model.to_bytes().unwrap()).unwrap();
        assert_eq!(again.header, model.header);
        assert_eq!(again.classifier, model.classifier);
        assert_eq!((again.kinds, again.novelty), (model.kinds, model.novelty));
    }
}

fn refusal(bytes: &[u8]) -> String {
    Model::from_bytes(bytes).unwrap_err().to_string()
}

/// The file with a change and a right checksum.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = model().to_bytes().unwrap();
    bytes.truncate(bytes.len() - 8);
    change(&mut bytes);
    let sum = xxh3_64(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

#[test]
fn damaged_files_and_those_of_other_versions_are_refused() {
    let good = model().to_bytes().unwrap();
    assert!(refusal(b"something else").contains("no model"));
    assert!(refusal(&good[..good.len() - 1]).contains("cut off"));
    let mut flipped = good.clone();
    flipped[100] ^= 1;
    assert!(refusal(&flipped).contains("checksum"));
    let newer = changed(|bytes| bytes[6] = 2);
    assert!(
        refusal(&newer).contains("format version 2"),
        "{}",
        refusal(&newer)
    );
    let replace = |bytes: &mut Vec<u8>, from: &[u8], to: &[u8]| {
        let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
        bytes[at..at + from.len()].copy_from_slice(to);
    };
    let other = changed(|b| replace(b, b"\"features_version\":1", b"\"features_version\":9"));
    assert!(refusal(&other).contains("features version 9"));
    let unknown = changed(|b| replace(b, b"net.answers.change", b"net.answers.chance"));
    assert!(refusal(&unknown).contains("net.answers.chance"));
    let never = changed(|b| replace(b, b"\"k\":4", b"\"k\":0"));
    assert!(refusal(&never).contains("verdict"));
}

#[test]
fn trees_that_do_not_end_are_none() {
    let ask = |left, right| Node {
        value: 0.0,
        split: Some(Split {
            feature: 0,
            threshold: 0.0,
            left,
            right,
        }),
    };
    let leaf = Node {
        value: 0.0,
        split: None,
    };
    assert!(Tree::new(vec![]).is_none());
    assert!(Tree::new(vec![ask(0, 1), leaf]).is_none());
    assert!(Tree::new(vec![ask(1, 2), leaf]).is_none());
    assert!(Tree::new(vec![ask(1, 1), leaf]).is_some());
    let mut wrong = leaf;
    wrong.value = f32::NAN;
    assert!(Tree::new(vec![wrong]).is_none());
}

#[test]
fn huge_answers_are_a_score_all_the_same() {
    let huge = Node {
        value: f32::MAX,
        split: None,
    };
    let huge = Tree::new(vec![huge]).unwrap();
    let trees = Trees {
        base: 0.25,
        scale: 0.0,
        trees: vec![huge.clone(), huge],
    };
    let trees = Classifier::Trees(trees);
    let model = Model::new(header(Method::Forest), trees, vec![stump()], novelty()).unwrap();
    let judged = model.judge(&window(0.0, 0.0));
    assert_eq!((judged.score, judged.faulty), (0.25, false));
}

proptest! {
    #[test]
    fn whatever_is_taken_can_be_judged_with(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4))
    {
        let bytes = changed(|bytes| for (at, to) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *to;
        });
        if let Ok(model) = Model::from_bytes(&bytes) {
            let judged = model.judge(&window(-2.0, 1.0));
            prop_assert!(judged.score.is_finite());
        }
    }
}
