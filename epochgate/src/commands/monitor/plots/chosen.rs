//! Which recordings are shown: by rules, so that nobody picks the pretty ones.

use monitor::evaluate::{Outcome, TimeLine};

/// A recording, and the rule by which it is here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chosen<'a> {
    /// In words.
    pub rule: &'static str,
    /// The recording.
    pub line: &'a TimeLine,
}

/// For each rule the recording that it names, if there is one and no rule before has named it. Of several that are alike the first by name.
pub(super) fn chosen(outcomes: &[Outcome]) -> Vec<Chosen<'_>> {
    let lines = outcomes.iter().flat_map(|outcome| &outcome.lines);
    let mut lines: Vec<&TimeLine> = lines.filter(|line| !line.points.is_empty()).collect();
    lines.sort_by(|a, b| a.name.cmp(&b.name));
    let healthy = lines.iter().filter(|line| line.fault.is_none()).copied();
    let mut healthy: Vec<&TimeLine> = healthy.collect();
    let mut found: Vec<(&TimeLine, f64)> = lines
        .iter()
        .filter_map(|line| Some((*line, line.found?)))
        .collect();
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    let lost = |line: &&&TimeLine| line.fault.is_some() && line.found.is_none();
    let mut lost: Vec<&TimeLine> = lines.iter().filter(lost).copied().collect();
    lost.sort_by(|a, b| highest(a).total_cmp(&highest(b)));

    let middle = found.len().checked_sub(1).map(|last| last / 2);
    let of_found = |at: Option<usize>| at.and_then(|at| found.get(at)).map(|(line, _)| *line);
    let mut rules = vec![
        ("found first", of_found(Some(0))),
        ("found after the median delay", of_found(middle)),
        ("found last", of_found(found.len().checked_sub(1))),
        ("not found, with the lowest scores", lost.first().copied()),
    ];
    healthy.sort_by(|a, b| b.demand.total_cmp(&a.demand));
    rules.push(("healthy, the busiest", healthy.first().copied()));
    healthy.sort_by(|a, b| highest(b).total_cmp(&highest(a)));
    rules.push(("healthy, with the highest score", healthy.first().copied()));

    let mut chosen: Vec<Chosen<'_>> = Vec::new();
    for (rule, line) in rules {
        if let Some(line) = line
            && chosen.iter().all(|other| !std::ptr::eq(other.line, line))
        {
            chosen.push(Chosen { rule, line });
        }
    }
    chosen
}

/// The highest score since the fault, or at all.
fn highest(line: &TimeLine) -> f32 {
    let from = line.fault_at.unwrap_or(0.0);
    let points = line.points.iter().filter(|(at, ..)| *at >= from);
    points.map(|(_, score, _)| *score).fold(0.0, f32::max)
}
