//! How a long task of a backup looks on a terminal, and how it is told to stop.

use indicatif::{ProgressBar, ProgressStyle};

use crate::bench::interrupt;

/// The bar. Nothing is shown where stderr is no terminal, or the answer is JSON.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Watches SIGTERM and SIGINT from now on.
    pub fn watch(what: &'static str, json: bool) -> anyhow::Result<Self> {
        interrupt::watch()?;
        let bar = match json {
            true => ProgressBar::hidden(),
            false => ProgressBar::no_length(),
        };
        let style = ProgressStyle::with_template(
            "{msg} {wide_bar} {bytes}/{total_bytes} (about {eta} to go)",
        );
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(what);
        Ok(Self { bar })
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl backup::Watch for Progress {
    fn begin(&self, bytes: u64) {
        self.bar.set_length(bytes);
    }

    fn done(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    fn stop(&self) -> bool {
        interrupt::check().is_err()
    }
}
