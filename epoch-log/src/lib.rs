//! The durable epoch log of one *group*: all disks of one VM. Knows nothing of NBD, QEMU or the network.
//!
//! A gateway holds what a guest writes in *epochs*. When an epoch is to become true, on all disks at once and whatever
//! fails in the middle, it goes through this log: its data is *appended*, and one small record *commits* it. That record is
//! the only commit point of the whole system: disk, memory and network output of a VM are decided by whether it is durable.
//! Later the images are brought up to date in the background, the epoch is marked *applied*, and its space is freed.
//!
//! ```text
//!   append(N) … append(N)   sync_data()   commit(N)                    mark_applied(N)
//!   ──────────────────────▶ ────────────▶ ───────────▶ images follow ─▶ ──────────────▶ segments are freed
//!   data, not durable yet    data durable   record durable: N is true
//! ```
//!
//! Why a commit has two syncs: a disk may write in any order what it is given between two syncs. With data durable before the record
//! is written, a record that is there vouches for its data. So recovery can tell two things apart that look alike, a record
//! that is not there: at the end it was just being written, and is cut; before something that refers to it, it is damage, and
//! the log refuses to open rather than lose an epoch that somebody has already seen.
//!
//! What decides who may write is in the log as well: the *generation*, which each takeover raises, the mode, and the standby
//! that holds the memory of the last epoch. Every such change is a *state record* with the whole state in it, written twice in
//! sectors of their own, numbered so that a missing one is noticed.
//!
//! Where to read on: [`EpochLog`] for the rules, `format` for the bytes, `recovery` for what a crash leaves, [`inspect`] for looking
//! at a log from outside, [`rollback`] for what can be done about a damaged one, [`apply`] for bringing an extent to an image.
//!
//! What the log can't notice: a copy of its directory from an earlier time, a newest segment that somebody has removed or cut,
//! and the loss of both copies of the very last state record while nothing follows it. From the inside these look like an
//! earlier moment or a crash. The standby's memory, which knows its epoch, does not fit then and is refused.

mod append;
pub mod apply;
mod disk;
mod error;
mod extent;
#[cfg(test)]
mod faults;
pub mod forgetful;
mod format;
pub mod history;
mod ids;
pub mod inspect;
pub mod limits;
mod log;
mod open;
mod recovery;
mod replay;
mod reserve;
pub mod rollback;
mod salvage;
mod scan;
mod segment;
mod segments;
mod spares;
mod state;
pub mod storage;
#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
mod writing;

pub use error::{Damage, DamageKind, DiskMismatch, LogError};
pub use extent::{Content, Extent, ExtentKind};
pub use ids::{Epoch, Generation};
pub use log::{EpochLog, LogOptions};
pub use open::Recovered;
pub use salvage::{DiskChange, EpochLeft, Salvage};
pub use state::{DiskIdentity, Holder, LogState, Mode};
