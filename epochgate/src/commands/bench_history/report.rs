//! The figures of `bench history` in words.

use super::{Figures, Past, SideFigures};
use crate::bench::machine::Machine;
use crate::bench::ratio::Spread;
use crate::output::bytes;

/// The command that repeats them.
const COMMAND: &str = "epochgate bench history";

fn side(figures: &Figures, past: Past) -> Option<&SideFigures> {
    figures.sides.iter().find(|side| side.past == past)
}

/// Ratios of the long history to another side: reads, writes.
fn ratios(figures: &Figures, to: Past) -> Option<(Spread, Spread)> {
    let (long, other) = (side(figures, Past::Long)?, side(figures, to)?);
    Some((
        Spread::of_ratios(&long.reads, &other.reads)?,
        Spread::of_ratios(&long.writes, &other.writes)?,
    ))
}

pub(super) fn markdown(figures: &Figures, machine: &Machine) -> String {
    let mut text = format!(
        "{} cores, Linux {}, {}.\n\n`{COMMAND} --epochs {}`: native client, 4 KiB at random, 32 in flight; writes count until they are in the image; median \
         (smallest–largest) of ratios within one round.\n\n| {} epochs kept against | random read | async random write |\n|---|---|---|\n",
        machine.cores, machine.kernel, machine.file_system, figures.epochs, figures.epochs
    );
    for to in [Past::Empty, Past::None] {
        if let Some((reads, writes)) = ratios(figures, to) {
            text.push_str(&format!("| {} | {reads} | {writes} |\n", to.name()));
        }
    }
    text.push_str(&format!("\n{}\n", facts(figures)));
    text
}

pub(super) fn text(figures: &Figures) -> String {
    let mut text = String::new();
    for side in &figures.sides {
        let rate = |rates: &[f64]| Spread::of(rates.iter().map(|rate| rate / 1000.0));
        if let (Some(reads), Some(writes)) = (rate(&side.reads), rate(&side.writes)) {
            text.push_str(&format!(
                "{:<28} {reads} thousand reads a second, {writes} thousand writes\n",
                side.past.name()
            ));
        }
    }
    for to in [Past::Empty, Past::None] {
        if let Some((reads, writes)) = ratios(figures, to) {
            text.push_str(&format!(
                "all kept against {:<28} reads {reads}, writes {writes}\n",
                to.name()
            ));
        }
    }
    text.push_str(&facts(figures));
    text.push('\n');
    text
}

fn facts(figures: &Figures) -> String {
    let of = |past, what: fn(&SideFigures) -> f64| side(figures, past).map_or(0.0, what);
    let rss = |past| side(figures, past).map_or(0, |side| side.rss);
    format!(
        "A historic export answers its first read {:.1} ms after the connection (median of {}; longest {:.1} ms). The gateway serves \
         {:.2} s after its start with {} of history in {} files, {:.2} s without. Its resident memory then: {} with, {} without.",
        figures.open_ms.0,
        figures.opened,
        figures.open_ms.1,
        of(Past::Long, |side| side.started_s),
        bytes(figures.history_bytes),
        figures.history_runs,
        of(Past::None, |side| side.started_s),
        bytes(rss(Past::Long)),
        bytes(rss(Past::None)),
    )
}
