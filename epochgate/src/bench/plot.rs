//! Horizontal bars as an SVG picture: panels one below the other, each with bars of one unit. Knows only names and numbers.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;

/// One panel.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    /// Above the bars.
    pub title: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    /// At its left.
    pub name: String,
    /// How long it is; written at its right.
    pub value: f64,
    /// Its colour.
    pub tone: Tone,
    /// Drawn as a line through the bar's end: from the smallest to the largest value, say.
    pub reach: Option<(f64, f64)>,
}

impl Bar {
    /// Without a reach.
    pub(crate) fn new(name: impl Into<String>, value: f64, tone: Tone) -> Self {
        Self {
            name: name.into(),
            value,
            tone,
            reach: None,
        }
    }

    /// The same with one.
    pub(crate) fn reaching(self, low: f64, high: f64) -> Self {
        Self {
            reach: Some((low, high)),
            ..self
        }
    }

    /// The farthest that it is drawn.
    fn end(&self) -> f64 {
        self.reach
            .map_or(self.value, |(_, high)| self.value.max(high))
    }
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

/// Draws the panels one below the other; in each the longest bar has all the room.
pub(crate) fn bars(path: &Path, panels: &[Panel]) -> anyhow::Result<()> {
    draw_all(path, panels, None)
}

/// The same of shares: 1 has all the room in each panel.
pub(crate) fn shares(path: &Path, panels: &[Panel]) -> anyhow::Result<()> {
    draw_all(path, panels, Some(1.0))
}

fn draw_all(path: &Path, panels: &[Panel], full: Option<f64>) -> anyhow::Result<()> {
    let height: u32 = panels.iter().map(height).sum();
    let area = SVGBackend::new(path, (WIDTH, height.max(1))).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(path, &e))?;
    let mut rest = area;
    for panel in panels {
        let (this, next) = rest.split_vertically(height_px(panel));
        draw(&this, panel, full).map_err(|e| failed(path, &e))?;
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

fn draw(
    area: &Area<'_>,
    panel: &Panel,
    full: Option<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let small = ("sans-serif", 12).into_font();
    area.draw(&Text::new(
        panel.title.clone(),
        (8, 8),
        ("sans-serif", 14).into_font(),
    ))?;
    let ends = panel.bars.iter().map(Bar::end);
    let most = ends.fold(full.unwrap_or(f64::MIN_POSITIVE), f64::max);
    let room = f64::from(WIDTH) - f64::from(LABEL + VALUE);
    #[allow(clippy::cast_possible_truncation, reason = "pixels")]
    let x = |value: f64| LABEL + (room * value / most).round() as i32;
    let mut y = i32::try_from(TITLE)?;
    for bar in &panel.bars {
        let colour = match bar.tone {
            Tone::Ours => RGBColor(0x1b, 0x6e, 0xc2),
            Tone::Peer => RGBColor(0x9a, 0xa0, 0xa6),
            Tone::Floor => RGBColor(0xdd, 0xd2, 0xb8),
        };
        area.draw(&Text::new(bar.name.clone(), (8, y + 2), small.clone()))?;
        let bottom = y + i32::try_from(BAR)? - 4;
        area.draw(&Rectangle::new(
            [(LABEL, y), (x(bar.value), bottom)],
            colour.filled(),
        ))?;
        if let Some((low, high)) = bar.reach {
            let (middle, dark) = (i32::midpoint(y, bottom), RGBColor(0x33, 0x33, 0x33));
            let line = |from, to| PathElement::new([from, to], dark);
            area.draw(&line((x(low), middle), (x(high), middle)))?;
            for end in [low, high] {
                area.draw(&line((x(end), middle - 3), (x(end), middle + 3)))?;
            }
        }
        let at = (x(bar.end()) + 6, y + 2);
        area.draw(&Text::new(written(bar.value), at, small.clone()))?;
        y += i32::try_from(BAR)?;
    }
    Ok(())
}

/// Three digits that count.
fn written(value: f64) -> String {
    match value.abs() {
        ..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_told_is_in_the_picture() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bars.svg");
        let panel = |title: &str, bars| Panel {
            title: title.to_owned(),
            bars,
        };
        let panels = [
            panel(
                "first",
                vec![Bar::new("ours", 1.5, Tone::Ours).reaching(1.0, 2.0)],
            ),
            panel("second", vec![Bar::new("peer", 1234.6, Tone::Peer)]),
        ];
        bars(&path, &panels).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for text in ["first", "ours", "1.50", "second", "peer", "1235"] {
            assert!(svg.contains(text), "{text} is missing:\n{svg}");
        }
        // A reach is a line with two ends.
        assert_eq!(svg.matches("<polyline").count(), 3, "{svg}");
    }
}
