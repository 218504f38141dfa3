//! Features: what a classifier sees of a VM at one instant, made from its samples alone.
//!
//! ```text
//! Sample ─▶ channels: signals and ratios between them, on scales that do not know the size of the VM
//!        ─▶ history:  the last 20 s as they are, the minutes before as one value a second
//!        ─▶ Window:   for each channel level, change, slope, spread and calm
//! ```
//!
//! | feature | of a channel |
//! |---|---|
//! | `level` | its mean over the last 5 s |
//! | `change` | `level` against the median of the VM's own last five minutes, without the last 20 s |
//! | `slope` | `level` against the 10 s before |
//! | `spread` | its standard deviation over the last 15 s |
//! | `calm` | `spread` against that of the last five minutes |
//! | `recent` | of events: how many there were in the last 30 s |
//!
//! Rates are logarithms, so `change`, `slope` and `calm` are ratios: half as much is the same of a large VM and of a small one. `change` and
//! `calm` are there because a VM that is quiet and ill differs from one that is quiet and well by what it was before, and by nothing else.
//! Until 20 s of that are known there are no windows.
//!
//! A channel whose signals are missing is neutral (0), and a feature `there.SOURCE` says so for its source. The list has a
//! [version](FEATURES_VERSION), as a model is worth nothing with features of another meaning.
//!
//! The same code makes the windows of recordings and of running VMs. It knows no labels.

mod channels;
mod extract;
mod history;
mod names;

pub use channels::Channel;
pub use extract::{Extractor, Window};
pub use names::{Feature, Stat, features, named};

/// Raised whenever a feature changes its meaning or the list changes.
pub const FEATURES_VERSION: u32 = 1;

/// A window looks back so far, in milliseconds; beside it only at what was usual.
pub const WINDOW_MS: u64 = history::WINDOW;
