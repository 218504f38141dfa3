//! A trained model: what it is made of, what it says of a window, and its file.
//!
//! | file | |
//! |---|---|
//! | `header` | what is known of it: features, versions, thresholds, figures of its training; plain values with bounds |
//! | `trees` | trees of questions, and sums of them |
//! | `linear` | a weighted sum |
//! | `novelty` | how far a window is from all that was learnt |
//! | `format` | the bytes, drawn at its head, and their bounds |
//! | `judge` | one window judged: score, kind, novelty, confidence, what speaks for it |
//!
//! Everything here is plain arithmetic over numbers that were checked when the file was read: it needs no learning library, can't fail, and
//! costs microseconds. How a model comes to be is in [`crate::learn`].

mod error;
mod format;
mod header;
mod judge;
mod linear;
mod novelty;
#[cfg(test)]
mod tests;
mod trees;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

pub use error::ModelError;
pub use format::MAX_FILE_BYTES;
pub use header::{Header, Method, Thresholds, Training};
pub use judge::{Judgement, Reason};
pub use linear::Linear;
pub(crate) use linear::standard;
pub use novelty::Novelty;
pub(crate) use novelty::distance;
pub use trees::{Node, Split, Tree, Trees};

use crate::features;

/// What tells faulty windows from normal ones.
#[derive(Debug, Clone, PartialEq)]
pub enum Classifier {
    /// Logistic regression.
    Linear(Linear),
    /// A random forest, or boosted trees.
    Trees(Trees),
}

impl Classifier {
    /// 0 normal to 1 faulty.
    pub fn score(&self, x: &[f32]) -> f32 {
        match self {
            Classifier::Linear(linear) => linear.score(x),
            Classifier::Trees(trees) => trees.sum(x).clamp(0.0, 1.0),
        }
    }

    /// What each feature adds to the score (for trees) or to its logarithmic odds (for weights).
    pub fn contributions(&self, x: &[f32]) -> Vec<f32> {
        match self {
            Classifier::Linear(linear) => linear.contributions(x),
            Classifier::Trees(trees) => trees.contributions(x),
        }
    }

    /// How much it listens to each of so many features; the sum is 1.
    pub fn weights(&self, features: usize) -> Vec<f32> {
        let mut weights = match self {
            Classifier::Linear(linear) => linear.weights(),
            Classifier::Trees(trees) => trees.weights(features),
        };
        let sum: f32 = weights.iter().sum();
        if sum > 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        weights
    }
}

/// A model, ready to judge.
#[derive(Debug, Clone)]
pub struct Model {
    header: Header,
    classifier: Classifier,
    /// For each kind of fault, as in the header.
    kinds: Vec<Trees>,
    novelty: Novelty,
    /// Where its features are among all.
    columns: Vec<usize>,
    weights: Vec<f32>,
}

impl Model {
    /// Puts one together.
    ///
    /// # Errors
    /// Its parts do not fit each other, or something is beyond the bounds.
    pub fn new(
        header: Header,
        classifier: Classifier,
        kinds: Vec<Trees>,
        novelty: Novelty,
    ) -> Result<Self, ModelError> {
        header.check()?;
        let columns = header
            .features
            .iter()
            .map(|name| features::named(name).ok_or_else(|| ModelError::Feature(name.clone())))
            .collect::<Result<Vec<_>, _>>()?;
        let width = columns.len();
        let fits = match (&classifier, header.method) {
            (Classifier::Linear(linear), Method::Logistic) => linear.fits(width),
            (Classifier::Trees(trees), Method::Forest | Method::Boosted) => trees.fits(width),
            _ => false,
        };
        if !fits || kinds.len() != header.kinds.len() || !kinds.iter().all(|k| k.fits(width)) {
            return Err(ModelError::Invalid(
                "its parts do not fit each other".to_owned(),
            ));
        }
        if !novelty.fits(width) {
            return Err(ModelError::Invalid(
                "what it has seen does not fit its features".to_owned(),
            ));
        }
        Ok(Self {
            weights: classifier.weights(width),
            header,
            classifier,
            kinds,
            novelty,
            columns,
        })
    }

    /// What is known of it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// As the bytes of a file.
    ///
    /// # Errors
    /// It is beyond the bounds of a file.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ModelError> {
        format::encode(self)
    }

    /// From the bytes of a file, which may be anything: what is taken can be judged with.
    ///
    /// # Errors
    /// They are damaged, of another version, or no model.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        format::decode(bytes)
    }

    /// The one that comes with Epochgate, learnt from the data set in `monitor/dataset`.
    ///
    /// # Errors
    /// It is of another version than this program, which a test rules out.
    pub fn shipped() -> Result<Self, ModelError> {
        Self::from_bytes(include_bytes!("../../models/default.egmodel"))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`Model::from_bytes`], and those of the system.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        let failed = ModelError::at("read", path);
        let mut bytes = Vec::new();
        fs::File::open(path)
            .and_then(|file| {
                // One more than is allowed, to tell.
                let limit = MAX_FILE_BYTES as u64 + 1;
                file.take(limit).read_to_end(&mut bytes)
            })
            .map_err(failed)?;
        Self::from_bytes(&bytes).map_err(|error| error.of(path))
    }

    /// Writes a file: under another name first, so that there never is half of one.
    ///
    /// # Errors
    /// Those of the system.
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        let bytes = self.to_bytes()?;
        let unfinished = path.with_extension("part");
        let written = fs::File::create(&unfinished)
            .and_then(|mut file| {
                file.write_all(&bytes)?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&unfinished, path));
        written.map_err(|error| {
            // What is left of it is of no use.
            let _ = fs::remove_file(&unfinished);
            ModelError::at("write", path)(error)
        })
    }
}
