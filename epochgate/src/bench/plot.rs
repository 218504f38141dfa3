//! Horizontal bars as an SVG picture: one panel per profile, one bar per server. Knows only names and numbers.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

/// One panel.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    /// Above the bars.
    pub title: String,
    /// Name and value of each bar, from top to bottom.
    pub bars: Vec<(String, f64, Tone)>,
}

/// The colour of a bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// The gateway.
    Ours,
    /// What it is compared with.
    Peer,
    /// What limits both.
    Floor,
}

const WIDTH: u32 = 900;
const BAR: u32 = 18;
const TITLE: u32 = 26;
const LABEL: i32 = 150;
const VALUE: i32 = 90;

/// Draws the panels one below the other.
pub(crate) fn bars(path: &Path, panels: &[Panel]) -> anyhow::Result<()> {
    let height: u32 = panels.iter().map(height).sum();
    let area = SVGBackend::new(path, (WIDTH, height.max(1))).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(path, &e))?;
    let mut rest = area;
    for panel in panels {
        let (this, next) = rest.split_vertically(height_px(panel));
        draw(&this, panel).map_err(|e| failed(path, &e))?;
        rest = next;
    }
    rest.present().map_err(|e| failed(path, &e))
}

fn height(panel: &Panel) -> u32 {
    TITLE + BAR * u32::try_from(panel.bars.len()).unwrap_or(0) + BAR / 2
}

fn height_px(panel: &Panel) -> i32 {
    i32::try_from(height(panel)).unwrap_or(0)
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow!("{} can't be drawn: {error}", path.display())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(area: &Area<'_>, panel: &Panel) -> Result<(), Box<dyn std::error::Error>> {
    let small = ("sans-serif", 12).into_font();
    area.draw(&Text::new(
        panel.title.clone(),
        (8, 8),
        ("sans-serif", 14).into_font(),
    ))?;
    let most = panel
        .bars
        .iter()
        .map(|bar| bar.1)
        .fold(f64::MIN_POSITIVE, f64::max);
    let room = f64::from(WIDTH) - f64::from(LABEL + VALUE);
    let mut y = i32::try_from(TITLE)?;
    for (name, value, tone) in &panel.bars {
        #[allow(clippy::cast_possible_truncation, reason = "pixels")]
        let length = (room * value / most).round() as i32;
        let colour = match tone {
            Tone::Ours => RGBColor(0x1b, 0x6e, 0xc2),
            Tone::Peer => RGBColor(0x9a, 0xa0, 0xa6),
            Tone::Floor => RGBColor(0xdd, 0xd2, 0xb8),
        };
        area.draw(&Text::new(name.clone(), (8, y + 2), small.clone()))?;
        let bottom = y + i32::try_from(BAR)? - 4;
        area.draw(&Rectangle::new(
            [(LABEL, y), (LABEL + length, bottom)],
            colour.filled(),
        ))?;
        let at = (LABEL + length + 6, y + 2);
        area.draw(&Text::new(format!("{value:.0}"), at, small.clone()))?;
        y += i32::try_from(BAR)?;
    }
    Ok(())
}
