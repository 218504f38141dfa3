#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const RULE: Rule = Rule {
    windows: 3,
    of: 5,
    alarm: None,
    least_confidence: 0.5,
    margin: TimeSpan(4_000),
};

fn opinion(second: u64, score: f64) -> Opinion {
    Opinion {
        from_ms: second * 1000,
        to_ms: second * 1000 + 10_000,
        score,
        threshold: 0.5,
        still_faulty: 0.3,
        strange: false,
        confidence: 1.0,
        kind: (score >= 0.5).then(|| "leak".to_owned()),
        reasons: vec!["the guest's memory grows".to_owned()],
    }
}

fn hear(judge: &mut Judge, scores: &[f64]) -> Vec<Verdict> {
    let from = judge
        .windows
        .back()
        .map_or(0, |window| window.from_ms / 1000 + 1);
    (from..)
        .zip(scores)
        .filter_map(|(second, score)| judge.hear(opinion(second, *score)))
        .collect()
}

#[test]
fn one_window_alone_says_nothing() {
    let mut judge = Judge::new(RULE);
    assert_eq!(hear(&mut judge, &[0.1; 10]).len(), 1);
    assert_eq!(judge.health(), Health::Healthy);
    assert!(hear(&mut judge, &[0.9, 0.1, 0.9, 0.1, 0.1, 0.1]).is_empty());
}

#[test]
fn enough_windows_make_a_verdict_with_the_time_before_the_first() {
    let mut judge = Judge::new(RULE);
    hear(&mut judge, &[0.1; 20]);
    let verdicts = hear(&mut judge, &[0.9, 0.1, 0.8, 0.7]);
    let [verdict] = verdicts.as_slice() else {
        panic!("{verdicts:?}");
    };
    assert_eq!(verdict.health, Health::Faulty);
    assert_eq!(verdict.kind.as_deref(), Some("leak"));
    assert!((verdict.score - 0.8).abs() < 1e-9);
    assert_eq!(verdict.reasons, ["the guest's memory grows"]);
    // The margin before the last window of which nothing speaks against it.
    assert_eq!(verdict.sound_until_ms, Some(19 * 1000 + 10_000 - 4_000));
}

#[test]
fn a_doubt_begins_the_margin_anew() {
    let mut judge = Judge::new(RULE);
    hear(&mut judge, &[0.1; 20]);
    let before = judge.sound_until_ms();
    // Five windows until the doubt is out of sight, and then the margin: 4 s.
    hear(&mut judge, &[0.9]);
    hear(&mut judge, &[0.1; 8]);
    assert_eq!(judge.sound_until_ms(), before);
    hear(&mut judge, &[0.1]);
    assert!(judge.sound_until_ms() > before);
    judge.forget();
    let kept = judge.sound_until_ms();
    hear(&mut judge, &[0.1; 8]);
    assert_eq!(
        judge.sound_until_ms(),
        kept,
        "it was begun anew: what was sound stays"
    );
}

#[test]
fn what_is_hardly_measured_counts_for_nothing() {
    let mut judge = Judge::new(RULE);
    hear(&mut judge, &[0.1; 10]);
    let blind = |second| Opinion {
        confidence: 0.2,
        ..opinion(second, 0.9)
    };
    let verdicts: Vec<_> = (20..30)
        .filter_map(|second| judge.hear(blind(second)))
        .collect();
    assert_eq!(verdicts.len(), 1);
    assert_eq!(judge.health(), Health::Unknown);
}

#[test]
fn strange_and_faulty_windows_together_are_not_healthy() {
    let mut judge = Judge::new(RULE);
    hear(&mut judge, &[0.1; 10]);
    let strange = |second| Opinion {
        strange: true,
        ..opinion(second, 0.2)
    };
    judge.hear(strange(20));
    judge.hear(opinion(21, 0.9));
    let verdict = judge.hear(strange(22)).unwrap();
    assert_eq!(verdict.health, Health::Strange);
}

#[test]
fn rules_that_decide_nothing_are_refused() {
    let rule = |windows, of| Rule {
        windows,
        of,
        ..RULE
    };
    assert!(rule(0, 5).check().is_err());
    assert!(rule(6, 5).check().is_err());
    assert!(rule(2, 4).check().is_err());
    assert!(rule(3, 5).check().is_ok());
    assert!(
        Rule {
            least_confidence: f64::NAN,
            ..RULE
        }
        .check()
        .is_err()
    );
}

proptest! {
    /// Whatever comes: a faulty verdict needs its windows, and the sound time lies before all of them.
    #[test]
    fn no_verdict_without_its_windows(scores in prop::collection::vec(0.0_f64..1.0, 1..60)) {
        let mut judge = Judge::new(RULE);
        let mut heard: Vec<f64> = Vec::new();
        for (second, score) in (0..).zip(&scores) {
            heard.push(*score);
            let verdict = judge.hear(opinion(second, *score));
            let last = &heard[heard.len().saturating_sub(RULE.of)..];
            let against = last.iter().filter(|score| **score >= 0.5).count();
            if let Some(verdict) = verdict {
                let enough = match verdict.health {
                    Health::Faulty => against >= RULE.windows,
                    Health::Healthy => last.len() - against >= RULE.windows,
                    _ => false,
                };
                prop_assert!(enough, "{verdict:?} after {last:?}");
                if let Some(sound) = verdict.sound_until_ms {
                    // From then on, for the margin, nothing speaks against it.
                    let ends = usize::try_from((sound - 10_000) / 1000).unwrap();
                    prop_assert!(scores[ends..=ends + 4].iter().all(|score| *score < 0.5));
                }
            }
        }
    }
}

#[test]
fn a_fault_whose_score_goes_up_and_down_is_one() {
    let mut judge = Judge::new(RULE);
    hear(&mut judge, &[0.1; 20]);
    assert_eq!(hear(&mut judge, &[0.9, 0.8, 0.8]).len(), 1);
    assert!(hear(&mut judge, &[0.4; 30]).is_empty());
    assert_eq!(judge.health(), Health::Faulty);
    assert_eq!(hear(&mut judge, &[0.2; 5]).len(), 1);
    // The same score is no fault of one that is well.
    assert!(hear(&mut judge, &[0.4; 30]).is_empty());
    assert_eq!(judge.health(), Health::Healthy);
}
