//! `timeline.svg`: some recordings of loads that were never seen, as the main model judges them from second to second.

use std::path::Path;

use monitor::evaluate::{Report, TimeLine};

use super::chosen::{Chosen, chosen};
use super::sheet::{ALARM, Anchor, Frame, INK, OURS, Sheet, tint};

const WIDTH: i32 = 900;
const LEFT: i32 = 50;
/// A recording, with its title and axis.
const PANEL: i32 = 150;
const CHART: i32 = 92;
/// The lines that say what is what.
const LEGEND: i32 = 40;
/// A verdict that stands, as a bar at the top of the chart.
const BAR: i32 = 7;
/// Lines of the grid at most.
const TICKS: f64 = 9.0;

pub(super) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let all = chosen(&report.outcomes);
    let panels = i32::try_from(all.len().max(1))?;
    let sheet = Sheet::new(path, WIDTH, LEGEND + panels * PANEL)?;
    legend(&sheet)?;
    if all.is_empty() {
        sheet.text(
            "no recording has a window",
            (LEFT, LEGEND + 40),
            Anchor::Left,
            14,
            INK,
        )?;
    }
    let mut top = LEGEND;
    for one in &all {
        panel(&sheet, top, one)?;
        top += PANEL;
    }
    sheet.done()
}

fn legend(sheet: &Sheet<'_>) -> anyhow::Result<()> {
    let y = 18;
    sheet.line(vec![(LEFT, y), (LEFT + 28, y)], OURS, 2)?;
    sheet.text("score of a window", (LEFT + 34, y), Anchor::Left, 13, INK)?;
    sheet.dashes((LEFT + 190, y), LEFT + 218, INK)?;
    sheet.text(
        "counts from here on",
        (LEFT + 224, y),
        Anchor::Left,
        13,
        INK,
    )?;
    sheet.fill((LEFT + 390, y - 8), (LEFT + 410, y + 8), tint(ALARM, 0.12))?;
    sheet.line(vec![(LEFT + 390, y - 8), (LEFT + 390, y + 8)], ALARM, 2)?;
    sheet.text("since the fault", (LEFT + 418, y), Anchor::Left, 13, INK)?;
    sheet.fill((LEFT + 560, y - BAR / 2), (LEFT + 588, y + BAR / 2), ALARM)?;
    sheet.text("a verdict stands", (LEFT + 594, y), Anchor::Left, 13, INK)
}

fn panel(sheet: &Sheet<'_>, top: i32, one: &Chosen<'_>) -> anyhow::Result<()> {
    let line = one.line;
    sheet.text(&title(one), (LEFT, top + 10), Anchor::Left, 14, INK)?;
    let ends = |at: Option<&(f64, f32, bool)>| at.map_or(0.0, |point| point.0);
    let (begin, end) = (ends(line.points.first()), ends(line.points.last()));
    let frame = Frame {
        at: (LEFT, top + 24),
        size: (WIDTH - LEFT - 30, CHART),
        x: (begin, end.max(begin + 1.0)),
        y: (0.0, 1.0),
    };
    if let Some(at) = line.fault_at.filter(|at| *at <= end) {
        let x = frame.pixel_x(at);
        sheet.fill(
            (x, frame.at.1),
            (frame.right(), frame.bottom()),
            tint(ALARM, 0.12),
        )?;
    }
    frame.axes(sheet, &ticks(begin, end), &[0.0, 0.5, 1.0])?;
    if let Some(at) = line.fault_at.filter(|at| *at <= end) {
        let x = frame.pixel_x(at);
        sheet.line(vec![(x, frame.at.1), (x, frame.bottom())], ALARM, 2)?;
    }
    let y = frame.pixel_y(line.alarm.into());
    sheet.dashes((LEFT, y), frame.right(), INK)?;
    for (from, to) in verdicts(line) {
        let (from, to) = (
            frame.pixel_x(from),
            frame.pixel_x(to).max(frame.pixel_x(from) + 2),
        );
        sheet.fill((from, frame.at.1), (to, frame.at.1 + BAR), ALARM)?;
    }
    sheet.line(curve(&frame, line), OURS, 1)?;
    let unit = (frame.right() + 24, frame.bottom() + 10);
    sheet.text("s", unit, Anchor::Right, 12, INK)
}

fn title(one: &Chosen<'_>) -> String {
    let line = one.line;
    let what = match (&line.fault, line.found) {
        (None, _) => "no fault".to_owned(),
        (Some(fault), Some(delay)) => format!("{fault}, found after {delay:.1} s"),
        (Some(fault), None) => format!("{fault}, not found"),
    };
    format!("{}: {} ({}), {what}", one.rule, line.load, line.name)
}

/// Begins and ends of the time in which there was a verdict.
fn verdicts(line: &TimeLine) -> Vec<(f64, f64)> {
    let mut spans: Vec<(f64, f64)> = Vec::new();
    let mut stands = false;
    for (at, _, ill) in &line.points {
        match (stands, spans.last_mut()) {
            (true, Some(span)) => span.1 = *at,
            (false, _) if *ill => spans.push((*at, *at)),
            _ => {}
        }
        stands = *ill;
    }
    spans
}

/// Of many points in one column of pixels the lowest and the highest.
fn curve(frame: &Frame, line: &TimeLine) -> Vec<(i32, i32)> {
    let mut columns: Vec<(i32, i32, i32)> = Vec::new();
    for (at, score, _) in &line.points {
        let (x, y) = frame.pixel(*at, f64::from(*score));
        match columns.last_mut() {
            Some((last, low, high)) if *last == x => {
                (*low, *high) = ((*low).min(y), (*high).max(y))
            }
            _ => columns.push((x, y, y)),
        }
    }
    let mut points: Vec<(i32, i32)> = columns
        .into_iter()
        .flat_map(|(x, low, high)| [(x, low), (x, high)])
        .collect();
    points.dedup();
    points
}

/// Round numbers of seconds.
fn ticks(begin: f64, end: f64) -> Vec<f64> {
    let steps = [
        1.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0,
    ];
    let fits = |step: &&f64| (end - begin) / **step <= TICKS;
    let step = steps
        .iter()
        .find(fits)
        .copied()
        .unwrap_or((end - begin) / TICKS);
    let first = (begin / step).ceil();
    let mut ticks = Vec::new();
    let mut at = first * step;
    while at <= end && ticks.len() < 20 {
        ticks.push(at);
        at += step;
    }
    ticks
}
