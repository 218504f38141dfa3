//! What an operator asks of a source while it runs.

use nbd_server::Epoch;
use tokio::sync::oneshot;

/// A request. Whoever asks may go away; what was begun goes on.
#[derive(Debug)]
pub enum Command {
    /// Move the VM to its standby, without anything being rolled back. This source ends then.
    Switchover {
        /// Told what came of it.
        reply: oneshot::Sender<Result<Moved, NotMoved>>,
    },
}

/// Where a VM was moved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The standby, which goes on with it.
    pub standby: String,
    /// The last epoch here, from which it does.
    pub epoch: Epoch,
}

/// Why a VM stays where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotMoved {
    /// Nobody holds its memory.
    #[error(
        "it is not protected: no standby holds its memory; wait until `epochgate status` says who protects it"
    )]
    Unprotected,
    /// It is on its way already.
    #[error("it is being moved already")]
    Busy,
    /// The last epoch did not come through in time; the VM runs on here.
    #[error("its last epoch was not committed within {0} s; it runs on here, and nothing is lost")]
    TooSlow(u64),
    /// The standby was lost meanwhile; the VM runs on here.
    #[error("the standby was lost meanwhile; it runs on here, and nothing is lost")]
    StandbyLost,
    /// The VM ended meanwhile.
    #[error("it ended here meanwhile")]
    Ended,
}
