//! `roc.svg`: false alarms against hits, of everybody who judges.

use std::path::Path;

use monitor::evaluate::{Curve, Report, Scheme};
use plotters::style::RGBColor;

use super::sheet::{Anchor, Frame, INK, OURS, PALE, Sheet};

/// Colours that can be told apart by those who see fewer, too; what comes after has one of them again.
const OTHERS: [RGBColor; 8] = [
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0x00, 0x00, 0x00),
    RGBColor(0x8d, 0x6e, 0x63),
    RGBColor(0x9a, 0xa0, 0xa6),
];
const SIDE: i32 = 380;
const GAP: i32 = 80;
const TOP: i32 = 40;
/// A line of the legend.
const LINE: i32 = 18;

pub(super) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let of = |scheme: Scheme| -> Vec<&Curve> {
        let curves = report.curves.iter();
        curves.filter(|curve| curve.scheme == scheme).collect()
    };
    let both = Scheme::ALL.map(of);
    let most = both.iter().map(Vec::len).max().unwrap_or(0);
    let legend = LINE * i32::try_from(most.max(1))?;
    let sheet = Sheet::new(path, 2 * (SIDE + GAP), TOP + SIDE + 60 + legend)?;
    let titles = [
        "loads that were never seen",
        "kinds of fault that were never seen",
    ];
    for ((curves, title), turn) in both.iter().zip(titles).zip(0..) {
        let frame = Frame {
            at: (60 + turn * (SIDE + GAP), TOP),
            size: (SIDE, SIDE),
            x: (0.0, 1.0),
            y: (0.0, 1.0),
        };
        panel(&sheet, &frame, title, curves, &report.method)?;
    }
    sheet.done()
}

fn panel(
    sheet: &Sheet<'_>,
    frame: &Frame,
    title: &str,
    curves: &[&Curve],
    main: &str,
) -> anyhow::Result<()> {
    let (left, middle) = (frame.at.0, frame.at.0 + SIDE / 2);
    sheet.text(title, (middle, 16), Anchor::Middle, 16, INK)?;
    let ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
    frame.axes(sheet, &ticks, &ticks)?;
    let below = frame.bottom() + 28;
    sheet.text(
        "normal windows called faulty, share",
        (middle, below),
        Anchor::Middle,
        13,
        INK,
    )?;
    let side = (left - 40, frame.bottom() - 70);
    sheet.text(
        "faulty windows called faulty, share",
        side,
        Anchor::Upwards,
        13,
        INK,
    )?;
    sheet.line(vec![frame.pixel(0.0, 0.0), frame.pixel(1.0, 1.0)], PALE, 1)?;
    let mut others = OTHERS.iter().cycle();
    let looks: Vec<(RGBColor, u32)> = curves
        .iter()
        .map(|curve| match curve.rival == main {
            true => (OURS, 3),
            false => (others.next().copied().unwrap_or(INK), 2),
        })
        .collect();
    // The first one is the main model: above all others.
    for (curve, (colour, width)) in curves.iter().zip(&looks).rev() {
        let points = curve.points.iter();
        let mut pixels: Vec<(i32, i32)> = points.map(|(x, y)| frame.pixel(*x, *y)).collect();
        pixels.dedup();
        sheet.line(pixels, *colour, *width)?;
    }
    let mut y = below + 28;
    for (curve, (colour, width)) in curves.iter().zip(&looks) {
        sheet.line(vec![(left, y), (left + 28, y)], *colour, *width)?;
        let text = format!("{}, AUC {:.3}", curve.rival.replace('_', " "), curve.auc);
        sheet.text(&text, (left + 36, y), Anchor::Left, 14, INK)?;
        y += LINE;
    }
    if curves.is_empty() {
        sheet.text("nothing to judge", (left, y), Anchor::Left, 14, INK)?;
    }
    Ok(())
}
