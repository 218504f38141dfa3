//! How far a connection is, for a server that stops: whether to end it now would lose an answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::credit::Credits;

/// Shared by a connection's thread and the server.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    admitted: AtomicBool,
    attached: OnceLock<Attached>,
}

#[derive(Debug)]
struct Attached {
    credits: Arc<Credits>,
    reconnects: bool,
}

impl Standing {
    /// The client is about to be told that it is attached: from then on it is not one of those that are still in their handshake.
    pub fn admitted(&self) {
        self.admitted.store(true, Ordering::Release);
    }

    /// The handshake has ended. `credits` tell what is under way; a client that `reconnects` had better do so at once.
    pub fn attached(&self, credits: Arc<Credits>, reconnects: bool) {
        // A connection attaches once.
        let _ = self.attached.set(Attached {
            credits,
            reconnects,
        });
    }

    /// True when the handshake ends in an attachment.
    pub fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    /// True when a stop that began `since` may take nothing more from the client. In its handshake a client has `linger` to ask, be told
    /// of the stop, and say goodbye.
    pub fn may_end(&self, since: Duration, linger: Duration) -> bool {
        self.attached.get().map_or(since >= linger, |attached| {
            attached.reconnects || attached.credits.are_all_returned()
        })
    }
}
