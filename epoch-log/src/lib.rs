//! The durable epoch log of one group: all disks of one VM.
//!
//! Knows nothing of NBD, QEMU or the network.

pub mod apply;
mod error;
mod extent;
mod ids;
pub mod inspect;
pub mod limits;
mod log;
mod state;

pub use error::{Damage, DamageKind, DiskMismatch, LogError};
pub use extent::{Content, Extent, ExtentKind};
pub use ids::{Epoch, Generation};
pub use log::{EpochLog, LogOptions, Recovered};
pub use state::{DiskIdentity, Holder, LogState, Mode};
