//! `confusion.svg`: what windows are and what the main model says of them: normal or faulty, and which kind of fault.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use monitor::evaluate::{Outcome, Report};
use monitor::learn::metrics::Counts;
use plotters::style::{RGBColor, WHITE};

use super::sheet::{Anchor, INK, OURS, PALE, Sheet, plain, tint};

/// Of the small tables.
const WIDE: (i32, i32) = (120, 44);
/// Of the table of kinds.
const CELL: i32 = 28;
const LEFT: i32 = 190;
const TOP: i32 = 40;
/// Where the table of kinds begins, with its title.
const KINDS: i32 = TOP + 24 + 2 * WIDE.1 + 60;
/// Room above it for names that go upwards.
const NAMES: i32 = 190;
/// Characters of a name.
const NAME: usize = 26;
/// From this share on a cell is so dark that its text is white.
const DARK: f64 = 0.55;

pub(super) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let table = Table::of(&report.outcomes);
    let (rows, columns) = (
        i32::try_from(table.rows.len())?,
        i32::try_from(table.said.len())?,
    );
    let width = (LEFT + columns * CELL + 90).max(2 * LEFT + 4 * WIDE.0 + 40);
    let sheet = Sheet::new(path, width, KINDS + NAMES + rows.max(1) * CELL + 20)?;
    let both = [
        ("loads that were never seen", report.unseen_loads.windows),
        (
            "kinds of fault that were never seen",
            report.unseen_faults.windows,
        ),
    ];
    for ((title, counts), turn) in both.into_iter().zip(0..) {
        labels(&sheet, LEFT + turn * (2 * WIDE.0 + LEFT), title, counts)?;
    }
    table.draw(&sheet)?;
    sheet.done()
}

/// Normal and faulty.
fn labels(sheet: &Sheet<'_>, left: i32, title: &str, counts: Counts) -> anyhow::Result<()> {
    sheet.text(title, (left + WIDE.0, 14), Anchor::Middle, 15, INK)?;
    for (said, turn) in ["called normal", "called faulty"].into_iter().zip(0..) {
        let x = left + turn * WIDE.0 + WIDE.0 / 2;
        sheet.text(said, (x, TOP + 10), Anchor::Middle, 13, INK)?;
    }
    let rows = [
        ("normal windows", [counts.rests, counts.false_alarms]),
        ("faulty windows", [counts.misses, counts.hits]),
    ];
    for ((name, cells), row) in rows.into_iter().zip(0..) {
        let y = TOP + 24 + row * WIDE.1;
        sheet.text(name, (left - 8, y + WIDE.1 / 2), Anchor::Right, 13, INK)?;
        for (count, column) in cells.into_iter().zip(0..) {
            let share = share(count, cells.iter().sum());
            let text = format!("{count} ({:.1} %)", share * 100.0);
            cell(sheet, (left + column * WIDE.0, y), WIDE, share, &text)?;
        }
    }
    Ok(())
}

/// A box with a text.
fn cell(
    sheet: &Sheet<'_>,
    at: (i32, i32),
    size: (i32, i32),
    share: f64,
    text: &str,
) -> anyhow::Result<()> {
    let (right, bottom) = (at.0 + size.0, at.1 + size.1);
    sheet.fill(at, (right, bottom), tint(OURS, share))?;
    let edge = [at, (right, at.1), (right, bottom), (at.0, bottom), at];
    sheet.line(edge.to_vec(), PALE, 1)?;
    let ink: RGBColor = if share > DARK { WHITE } else { INK };
    let middle = (at.0 + size.0 / 2, at.1 + size.1 / 2);
    sheet.text(text, middle, Anchor::Middle, 13, ink)
}

#[allow(clippy::cast_precision_loss, reason = "counts of windows")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// True kinds and said ones.
struct Table {
    /// Each true kind with its windows, and those of them that were called each kind.
    rows: BTreeMap<String, (u64, BTreeMap<String, u64>)>,
    /// What was said, and what could have been.
    said: BTreeSet<String>,
}

impl Table {
    fn of(outcomes: &[Outcome]) -> Self {
        let mut table = Self {
            rows: BTreeMap::new(),
            said: BTreeSet::new(),
        };
        for ((truth, said), count) in outcomes.iter().flat_map(|outcome| &outcome.kinds) {
            let row = table.rows.entry(truth.clone()).or_default();
            row.0 += count;
            *row.1.entry(said.clone()).or_default() += count;
            table.said.extend([truth.clone(), said.clone()]);
        }
        table
    }

    fn draw(&self, sheet: &Sheet<'_>) -> anyhow::Result<()> {
        let title = "faulty windows of loads that were never seen: each kind of fault (left), and what it was called (above), in per cent";
        sheet.text(title, (10, KINDS), Anchor::Left, 15, INK)?;
        let top = KINDS + NAMES;
        if self.rows.is_empty() {
            return sheet.text("there are none", (10, top), Anchor::Left, 13, INK);
        }
        let mut x = LEFT;
        for said in &self.said {
            let at = (x + CELL / 2, top - 6);
            sheet.text(&plain(said, NAME), at, Anchor::Upwards, 13, INK)?;
            x += CELL;
        }
        sheet.text("windows", (x + 80, top - 12), Anchor::Right, 13, INK)?;
        let mut y = top;
        for (truth, (all, cells)) in &self.rows {
            let middle = y + CELL / 2;
            sheet.text(
                &plain(truth, NAME),
                (LEFT - 8, middle),
                Anchor::Right,
                13,
                INK,
            )?;
            let mut x = LEFT;
            for said in &self.said {
                let share = share(cells.get(said).copied().unwrap_or(0), *all);
                // What is rounded to nothing is left empty, so that the rest can be seen.
                let text = match share {
                    0.005.. => format!("{:.0}", share * 100.0),
                    _ => String::new(),
                };
                cell(sheet, (x, y), (CELL, CELL), share, &text)?;
                x += CELL;
            }
            sheet.text(&all.to_string(), (x + 80, middle), Anchor::Right, 13, INK)?;
            y += CELL;
        }
        Ok(())
    }
}
