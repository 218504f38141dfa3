//! Learning: from recordings with labels to a [`Model`](crate::model::Model).
//!
//! ```text
//! DataSet ─▶ table:   a window for each sample, with its label
//!         ─▶ draw:    so many of them, all loads and kinds of fault alike, normal and faulty half each
//!         ─▶ fit:     smartcore learns; `export` takes trees and weights out of it, which are all that a model keeps
//!         ─▶ train:   thresholds are chosen by what thirds of the recordings say of the others, then all is learnt once more from everything
//! ```
//!
//! | file | |
//! |---|---|
//! | `table` | windows with labels |
//! | `metrics` | figures of scores against labels |
//! | `draw` | which windows are learnt from |
//! | `fit`, `export` | smartcore, and what is taken out of it |
//! | `known` | windows that stand for all that was learnt, for novelty |
//! | `train` | all of it |
//!
//! The same recordings and seed give the same model. Recordings are never cut: all windows of one are learnt from, or none.

mod draw;
mod export;
mod fit;
mod known;
pub mod metrics;
mod table;
#[cfg(test)]
pub(crate) mod tests;
mod train;

pub use table::{Label, Row, Run, Table};
pub use train::{Options, Scored, alarm_threshold, train};

/// Why nothing was learnt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LearnError {
    /// There must be both.
    #[error("there are no {0} windows to learn from: a data set needs normal and faulty ones")]
    OneSided(&'static str),
    /// The library gave up.
    #[error("it can't be learnt: {0}")]
    Library(String),
    /// The model that came out is none.
    #[error("what was learnt makes no model")]
    Model(#[from] crate::model::ModelError),
}
