//! Backups of a group of disks: at one point of its history, over all disks, to a directory or a bucket. Each one can be restored by itself, and
//! takes only what has changed. Reads the gateway over NBD and its control API as anybody else would; knows nothing of a gateway's insides, and
//! no command line.
//!
//! ```text
//!   backups/GROUP/ID.json         a manifest: written last, so a backup is there whole or not at all
//!   data/GROUP/ID/NNNNNNNN.pack   what the backup ID brought along: blocks and lists
//!   state/GROUP/pending.json      the backup that is under way, or was interrupted
//!   state/GROUP/lock              held by whoever changes something
//!
//!   manifest ─▶ one list for each 64 GiB of a disk ─▶ one for each 64 MiB ─▶ blocks of 64 KiB
//! ```
//!
//! What a list names has the SHA-256 of its content and lies in a pack of this or of any earlier backup. So a new backup writes the blocks that
//! have changed, the lists above them and a manifest; everything else it shares. No backup needs another one's manifest: any of them can go, and
//! then the packs go that no list names any more. A block of zeros is a mark in its list.
//!
//! SHA-256 because the guest chooses what is in the blocks: nobody must be able to make two of them that look alike. The bytes are described in
//! [`mod@format`].

mod create;
mod error;
pub mod format;
mod gateway;
mod lock;
mod nbd;
mod prune;
mod read;
mod repository;
mod restore;
mod verify;

pub use create::{Created, Nbd, Order, create};
pub use error::BackupError;
pub use prune::{Keep, Pruned, prune, remove};
pub use repository::{Repository, Which};
pub use restore::{Restored, restore};
pub use verify::{Checked, verify};

/// What a long task reports to whoever waits for it, and asks.
pub trait Watch: Sync {
    /// So many bytes have to be looked at.
    fn begin(&self, bytes: u64);
    /// So many more were.
    fn done(&self, bytes: u64);
    /// A sentence for people.
    fn say(&self, text: &str);
    /// Whether to stop now.
    fn stop(&self) -> bool;
}
