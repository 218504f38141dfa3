//! Placeholder essay.

mod append;
pub mod apply;
mod disk;
mod error;
mod extent;
#[cfg(test)]
mod faults;
mod format;
mod ids;
pub mod inspect;
pub mod limits;
mod lock;
mod log;
mod open;
mod recovery;
mod replay;
mod reserve;
mod scan;
mod segment;
mod segments;
mod state;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;

pub use error::{Damage, DamageKind, DiskMismatch, LogError};
pub use extent::{Content, Extent, ExtentKind};
pub use ids::{Epoch, Generation};
pub use log::{EpochLog, LogOptions};
pub use open::Recovered;
pub use state::{DiskIdentity, Holder, LogState, Mode};
