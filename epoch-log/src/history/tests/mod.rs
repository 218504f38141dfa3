//! Histories against a model that keeps every epoch whole.

mod crash;
mod model;
mod random;
