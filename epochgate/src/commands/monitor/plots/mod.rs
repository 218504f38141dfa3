//! Pictures of an evaluation, as SVG files on a white ground. Knows a report and nothing of how it came to be.

mod chosen;
mod confusion;
mod kinds;
mod roc;
mod sheet;
#[cfg(test)]
mod tests;
mod timeline;

use std::fs;
use std::path::Path;

use anyhow::Context;
use monitor::evaluate::Report;

type Draw = fn(&Path, &Report) -> anyhow::Result<()>;

/// All of them.
const PICTURES: [(&str, Draw); 4] = [
    ("roc.svg", roc::draw),
    ("confusion.svg", confusion::draw),
    ("timeline.svg", timeline::draw),
    ("kinds.svg", kinds::draw),
];

/// Draws all of them into a folder, which is made if it is not there.
///
/// # Errors
/// A file can't be written.
pub(super) fn draw(folder: &Path, report: &Report) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, draw) in PICTURES {
        draw(&folder.join(name), report)?;
    }
    Ok(())
}
