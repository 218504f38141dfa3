//! Tests that need to see inside: a reference model, every crash, every error, every flipped bit.

mod crash;
mod damage;
mod errors;
pub(crate) mod forgetful;
mod history;
pub(crate) mod model;
mod rollback;
mod rules;
