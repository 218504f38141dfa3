//! Pictures of a report that is made up: as many loads and kinds as there are, and what could break a picture.
#![allow(clippy::unwrap_used)]

use std::fs;

use monitor::evaluate::{Curve, Outcome, Scheme, TimeLine};
use monitor::learn::metrics::Counts;

use super::chosen::chosen;
use super::*;

/// A recording of two minutes whose score rises a while after its fault, if that is found.
fn line(name: &str, fault: Option<&str>, found: Option<f64>, demand: f32) -> TimeLine {
    let fault_at = fault.map(|_| 60.0);
    let points = (40..=120).map(f64::from).map(|at| {
        let ill = found.is_some_and(|delay| at >= 60.0 + delay);
        (at, if ill { 0.9 } else { 0.1 }, ill)
    });
    TimeLine {
        name: name.to_owned(),
        load: "compile".to_owned(),
        fault: fault.map(str::to_owned),
        demand,
        found,
        points: points.collect(),
        fault_at,
        alarm: 0.7,
    }
}

fn report() -> Report {
    let mut outcomes = Vec::new();
    let kinds: Vec<String> = (0..20).map(|at| format!("a_kind_of_fault_{at}")).collect();
    let mut report = Report {
        method: "forest".to_owned(),
        ..Report::default()
    };
    for load in 0..21_u32 {
        let mut outcome = Outcome {
            fold: format!("load_with_name_{load}"),
            ..Outcome::default()
        };
        for (at, kind) in kinds.iter().enumerate() {
            let said = kinds[(at + usize::from(load == 3)) % 20].clone();
            *outcome.kinds.entry((kind.clone(), said)).or_default() += 10;
        }
        let f1 = (load != 5).then(|| f64::from(load) / 21.0);
        let figures = &mut report.unseen_loads.f1_of_folds;
        figures.insert(outcome.fold.clone(), f1);
        outcomes.push(outcome);
    }
    for kind in &kinds {
        let figures = &mut report.unseen_faults.f1_of_folds;
        figures.insert(kind.clone(), Some(0.5));
    }
    outcomes[0].lines = vec![
        line("idle", None, None, 0.1),
        line("busy", None, None, 0.9),
        line("quick", Some("hang"), Some(4.0), 0.5),
        line("usual", Some("leak"), Some(11.0), 0.5),
        line("late", Some("leak"), Some(45.0), 0.5),
        line("lost", Some("deadlock <&\u{1}>"), None, 0.5),
    ];
    outcomes[0].lines[0].points[3] = (43.0, 0.8, false);
    // What a model should never say, and what an empty recording looks like.
    outcomes[0].lines[2].points[5].1 = f32::NAN;
    let mut empty = line("empty", Some("hang"), None, 0.5);
    empty.points.clear();
    outcomes[0].lines.push(empty);
    report.unseen_loads.windows = Counts {
        hits: 900,
        false_alarms: 20,
        misses: 100,
        rests: 1980,
    };
    for rival in [
        "forest",
        "boosted",
        "without_dirty",
        "application_heartbeat",
    ] {
        for scheme in Scheme::ALL {
            report.curves.push(Curve {
                rival: rival.to_owned(),
                scheme,
                auc: 0.875,
                points: vec![(0.0, 0.0), (0.25, 1.0), (1.0, 1.0)],
            });
        }
    }
    report.outcomes = outcomes;
    report
}

/// Draws all, and gives back one, after a look whether it is XML without figures that are none.
fn drawn(report: &Report, name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    // To look at them, if somebody wants to.
    let folder = std::env::var_os("PLOTS_TO").map(std::path::PathBuf::from);
    let folder = folder.unwrap_or_else(|| dir.path().join("plots"));
    draw(&folder, report).unwrap();
    let svg = fs::read_to_string(folder.join(name)).unwrap();
    well_formed(&svg);
    for wrong in ["NaN", "inf"] {
        assert!(!svg.contains(wrong), "{name} has {wrong}:\n{svg}");
    }
    assert!(svg.contains("fill=\"#FFFFFF\""), "{name} has no ground");
    svg
}

/// As much of XML as there is in a picture: tags within each other, attributes in quotes, and nothing in texts that isn't text.
fn well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg;
    while let Some((text, tag)) = rest.split_once('<') {
        let good = |text: &str| {
            let mut parts = text.split('&');
            let entities = ["lt;", "gt;", "amp;", "quot;", "apos;"];
            parts.next();
            parts.all(|part| entities.iter().any(|name| part.starts_with(name)))
                && !text.contains('>')
                && !text.chars().any(|c| c.is_control() && c != '\n')
        };
        assert!(good(text), "{text}");
        let (tag, after) = tag.split_once('>').unwrap();
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
            continue;
        }
        let inner = tag.strip_suffix('/').unwrap_or(tag);
        assert!(good(inner) && inner.matches('"').count() % 2 == 0, "{tag}");
        if inner == tag {
            open.push(inner.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
}

fn has(svg: &str, texts: &[&str]) {
    for text in texts {
        assert!(svg.contains(text), "{text} is missing:\n{svg}");
    }
}

#[test]
fn curves_have_a_legend() {
    let svg = drawn(&report(), "roc.svg");
    has(
        &svg,
        &[
            "forest, AUC 0.875",
            "application heartbeat, AUC",
            "loads that were never seen",
        ],
    );
    // The main model is a thick line in both panels, and one in both legends.
    assert_eq!(svg.matches("stroke-width=\"3\"").count(), 4, "{svg}");
}

#[test]
fn confusion_is_in_per_cent_of_what_there_was() {
    let svg = drawn(&report(), "confusion.svg");
    has(
        &svg,
        &[
            "900 (90.0 %)",
            "20 (1.0 %)",
            "a_kind_of_fault_19",
            "rotate(270",
        ],
    );
    // Of each kind 20 of 21 loads were called rightly.
    let cells = |text: &str| svg.lines().filter(|line| *line == text).count();
    assert_eq!(
        (cells("95"), cells("5"), cells("210")),
        (20, 20, 20),
        "{svg}"
    );
}

#[test]
fn recordings_are_chosen_by_rule() {
    let report = report();
    let said: Vec<(&str, &str)> = chosen(&report.outcomes)
        .iter()
        .map(|one| (one.rule, one.line.name.as_str()))
        .collect();
    let expected = [
        ("found first", "quick"),
        ("found after the median delay", "usual"),
        ("found last", "late"),
        ("not found, with the lowest scores", "lost"),
        ("healthy, the busiest", "busy"),
        ("healthy, with the highest score", "idle"),
    ];
    assert_eq!(said, expected);
    let svg = drawn(&report, "timeline.svg");
    has(
        &svg,
        &[
            "found first: compile (quick), hang, found after 4.0 s",
            "deadlock &lt;&amp;?&gt;, not found",
            "healthy, the busiest: compile (busy), no fault",
        ],
    );
}

#[test]
fn each_load_and_each_kind_has_its_bar() {
    let svg = drawn(&report(), "kinds.svg");
    // One load has no faulty window.
    assert_eq!(svg.matches("load_with_name_").count(), 20);
    assert_eq!(svg.matches("a_kind_of_fault_").count(), 20);
    // One half is half as long as there is room for.
    assert!(svg.contains("width=\"330\""), "{svg}");
}

#[test]
fn where_there_is_nothing_there_are_pictures_all_the_same() {
    for name in ["roc.svg", "confusion.svg", "timeline.svg", "kinds.svg"] {
        drawn(&Report::default(), name);
    }
}
