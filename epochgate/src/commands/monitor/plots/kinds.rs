//! `kinds.svg`: F1 of each kind of fault and of each load, as what was never seen.

use std::collections::BTreeMap;
use std::path::Path;

use monitor::evaluate::Report;

use super::sheet::plain;
use crate::bench::plot::{self, Bar, Panel, Tone};

/// Characters of a name that have room.
const NAME: usize = 24;

pub(super) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let panels = [
        panel(
            "F1 of each kind of fault that was never seen",
            &report.unseen_faults.f1_of_folds,
        ),
        panel(
            "F1 of each load that was never seen",
            &report.unseen_loads.f1_of_folds,
        ),
    ];
    plot::shares(path, &panels)
}

/// The best one above all others. What has no faulty window has no F1, and no bar.
fn panel(title: &str, of: &BTreeMap<String, Option<f64>>) -> Panel {
    let mut all: Vec<(&String, f64)> = of
        .iter()
        .filter_map(|(name, f1)| Some((name, (*f1)?)))
        .collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    let bars = all
        .into_iter()
        .map(|(name, f1)| Bar::new(plain(name, NAME), f1, Tone::Ours))
        .collect();
    Panel {
        title: title.to_owned(),
        bars,
    }
}
