//! A white sheet for a picture as SVG: texts, lines and boxes at pixels, and frames that turn numbers into pixels. Knows nothing of what it
//! shows.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Longer texts are cut: names come from files.
const LONGEST: usize = 140;

/// What is written and drawn.
pub(super) const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
/// Axes, grids.
pub(super) const PALE: RGBColor = RGBColor(0xd5, 0xd8, 0xdc);
/// The main model.
pub(super) const OURS: RGBColor = RGBColor(0x1b, 0x6e, 0xc2);
/// Faults, verdicts.
pub(super) const ALARM: RGBColor = RGBColor(0xc6, 0x28, 0x28);

/// Where a text has its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    /// At its left end.
    Left,
    /// In its middle.
    Middle,
    /// At its right end.
    Right,
    /// At its lower end: it is turned and goes up.
    Upwards,
}

/// Something to draw on. Nothing is written before [`Sheet::done`].
pub(super) struct Sheet<'a> {
    path: PathBuf,
    area: DrawingArea<SVGBackend<'a>, Shift>,
}

impl<'a> Sheet<'a> {
    /// A white one, of so many pixels.
    pub(super) fn new(path: &'a Path, width: i32, height: i32) -> anyhow::Result<Self> {
        let size = (width.unsigned_abs().max(1), height.unsigned_abs().max(1));
        let sheet = Self {
            path: path.to_owned(),
            area: SVGBackend::new(path, size).into_drawing_area(),
        };
        sheet.checked(sheet.area.fill(&WHITE))?;
        Ok(sheet)
    }

    /// Writes the file.
    pub(super) fn done(self) -> anyhow::Result<()> {
        self.checked(self.area.present())
    }

    fn checked<E: std::fmt::Display>(&self, result: Result<(), E>) -> anyhow::Result<()> {
        result.map_err(|error| anyhow!("{} can't be drawn: {error}", self.path.display()))
    }

    /// A text of this size, centred around its height.
    pub(super) fn text(
        &self,
        text: &str,
        at: (i32, i32),
        anchor: Anchor,
        size: i32,
        colour: RGBColor,
    ) -> anyhow::Result<()> {
        let (side, turn) = match anchor {
            Anchor::Left => (HPos::Left, FontTransform::None),
            Anchor::Middle => (HPos::Center, FontTransform::None),
            Anchor::Right => (HPos::Right, FontTransform::None),
            Anchor::Upwards => (HPos::Left, FontTransform::Rotate270),
        };
        let font = ("sans-serif", size).into_font().transform(turn);
        let style = TextStyle::from(font)
            .color(&colour)
            .pos(Pos::new(side, VPos::Center));
        let text = plain(text, LONGEST);
        self.checked(self.area.draw(&Text::new(text, at, style)))
    }

    /// A line through these pixels.
    pub(super) fn line(
        &self,
        points: Vec<(i32, i32)>,
        colour: RGBColor,
        width: u32,
    ) -> anyhow::Result<()> {
        let style = colour.stroke_width(width);
        self.checked(self.area.draw(&PathElement::new(points, style)))
    }

    /// A horizontal line of dashes.
    pub(super) fn dashes(
        &self,
        from: (i32, i32),
        to_x: i32,
        colour: RGBColor,
    ) -> anyhow::Result<()> {
        let mut x = from.0;
        while x < to_x {
            let end = (x + 6).min(to_x);
            self.line(vec![(x, from.1), (end, from.1)], colour, 1)?;
            x += 10;
        }
        Ok(())
    }

    /// A filled box.
    pub(super) fn fill(
        &self,
        from: (i32, i32),
        to: (i32, i32),
        colour: RGBColor,
    ) -> anyhow::Result<()> {
        self.checked(self.area.draw(&Rectangle::new([from, to], colour.filled())))
    }
}

/// A part of a sheet with axes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    /// Left upper corner.
    pub at: (i32, i32),
    /// Width and height.
    pub size: (i32, i32),
    /// Least and most of the horizontal axis.
    pub x: (f64, f64),
    /// The same of the vertical one.
    pub y: (f64, f64),
}

impl Frame {
    /// The pixel of a point; what is outside is at the edge.
    pub(super) fn pixel(&self, x: f64, y: f64) -> (i32, i32) {
        (self.pixel_x(x), self.pixel_y(y))
    }

    pub(super) fn pixel_x(&self, x: f64) -> i32 {
        self.at.0 + place(x, self.x, self.size.0)
    }

    pub(super) fn pixel_y(&self, y: f64) -> i32 {
        self.at.1 + self.size.1 - place(y, self.y, self.size.1)
    }

    pub(super) fn right(&self) -> i32 {
        self.at.0 + self.size.0
    }

    pub(super) fn bottom(&self) -> i32 {
        self.at.1 + self.size.1
    }

    /// Its box, with a line and a number at each of these places.
    pub(super) fn axes(&self, sheet: &Sheet<'_>, xs: &[f64], ys: &[f64]) -> anyhow::Result<()> {
        let ((left, top), right, bottom) = (self.at, self.right(), self.bottom());
        for x in xs {
            let at = self.pixel_x(*x);
            sheet.line(vec![(at, top), (at, bottom)], PALE, 1)?;
            sheet.text(&number(*x), (at, bottom + 10), Anchor::Middle, 12, INK)?;
        }
        for y in ys {
            let at = self.pixel_y(*y);
            sheet.line(vec![(left, at), (right, at)], PALE, 1)?;
            sheet.text(&number(*y), (left - 6, at), Anchor::Right, 12, INK)?;
        }
        let corners = [
            (left, top),
            (right, top),
            (right, bottom),
            (left, bottom),
            (left, top),
        ];
        sheet.line(corners.to_vec(), INK, 1)
    }
}

/// How far along an axis of so many pixels. What is no number is at its begin.
#[allow(clippy::cast_possible_truncation, reason = "pixels")]
fn place(value: f64, (least, most): (f64, f64), pixels: i32) -> i32 {
    let share = (value - least) / (most - least).max(f64::MIN_POSITIVE);
    let share = if share.is_nan() { 0.0 } else { share };
    (share.clamp(0.0, 1.0) * f64::from(pixels)).round() as i32
}

fn number(x: f64) -> String {
    match x.fract() == 0.0 {
        true => format!("{x:.0}"),
        false => format!("{x:.1}"),
    }
}

/// A text as XML can hold it, of so many characters at most.
pub(super) fn plain(text: &str, most: usize) -> String {
    let is_good = |c: char| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let good = |c| if is_good(c) { c } else { '?' };
    match text.chars().count() > most {
        true => text
            .chars()
            .take(most.saturating_sub(1))
            .map(good)
            .chain(['…'])
            .collect(),
        false => text.chars().map(good).collect(),
    }
}

/// White for 0, the colour for 1.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a colour"
)]
pub(super) fn tint(colour: RGBColor, share: f64) -> RGBColor {
    let share = share.clamp(0.0, 1.0);
    let mix = |x: u8| (255.0 + (f64::from(x) - 255.0) * share).round() as u8;
    RGBColor(mix(colour.0), mix(colour.1), mix(colour.2))
}
