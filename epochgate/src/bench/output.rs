//! Where the figures of a bench go, and what is shown until they are there.

use std::path::Path;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::bench::OutputArgs;

/// Writes what was asked for to where it was asked for; the text only if nothing else is on stdout.
pub(crate) fn output(
    args: &OutputArgs,
    json: &serde_json::Value,
    markdown: &str,
    text: &str,
) -> anyhow::Result<()> {
    let stdout = Path::new("-");
    let mut quiet = false;
    let mut put = |path: &Option<std::path::PathBuf>, content: &str| -> anyhow::Result<()> {
        match path {
            None => Ok(()),
            Some(path) if path == stdout => {
                quiet = true;
                print!("{content}");
                Ok(())
            }
            Some(path) => std::fs::write(path, content)
                .with_context(|| format!("{} can't be written", path.display())),
        }
    };
    put(&args.json, &format!("{json}\n"))?;
    put(&args.markdown, markdown)?;
    if !quiet {
        print!("{text}");
    }
    Ok(())
}

/// The bar as all benches show it.
pub(crate) fn styled(bar: ProgressBar) -> ProgressBar {
    match ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg} (about {eta} to go)") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
