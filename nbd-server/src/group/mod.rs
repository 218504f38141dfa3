//! Groups: all disks of one VM, whose writes are held in epochs and committed together.

pub mod barriers;
mod bell;
mod budget;
pub mod overlay;
mod refusal;

pub use refusal::Refusal;
