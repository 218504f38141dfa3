//! Histories against a model that keeps every epoch whole.

mod cold;
mod crash;
mod freeze;
mod model;
mod random;
mod store;
mod torn;
