//! Tests that need to see inside: a reference model, every crash, every error, every flipped bit.

mod crash;
mod damage;
mod errors;
mod forgetful;
mod history;
mod model;
mod rollback;
mod rules;
