//! The deterministic simulator. One thread, one random number generator, a clock of its own: the real code of gateway, epoch log and
//! coordinator runs over a simulated disk, network and VM, with faults, and a reference model checks what everybody sees. The same
//! seed makes the same run.
//!
//! What is real and what is restated here says docs/testing.md. Nothing in this crate is part of the product.

#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod alone;
pub mod blocks;
pub mod gateway;
pub mod past;
pub mod planted;
pub mod poll;
pub mod protected;
pub mod storage;
pub mod trace;

use planted::Planted;
use trace::Trace;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(pub String);

/// Returns a [`Violation`].
macro_rules! violation {
    ($($what:tt)*) => {
        Err($crate::Violation(format!($($what)*)))
    };
}
pub(crate) use violation;

/// How seeds are run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// A mistake that is made.
    pub planted: Option<Planted>,
    /// The group keeps history: it holds writes in sync mode, too.
    pub history: bool,
    /// Print what happens.
    pub verbose: bool,
}

/// What a seed came to.
#[derive(Debug)]
pub struct Outcome {
    /// What happened.
    pub trace: Trace,
    /// What must not be.
    pub violation: Option<Violation>,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: &Options) -> Outcome {
    let mut trace = Trace::new(options.verbose);
    // Three of four seeds are about a protected VM.
    let result = if seed.is_multiple_of(4) {
        alone::run(seed, options, &mut trace)
    } else {
        protected::run(seed, options, &mut trace)
    };
    Outcome {
        trace,
        violation: result.err(),
    }
}
