//! Samples: the values of all signals at one instant.

mod values;

pub use values::{Sample, Values};
