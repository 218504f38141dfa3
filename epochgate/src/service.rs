//! What a service manager is told about this process (sd_notify(3)): when it is ready, reads its configuration again, and stops. Without
//! `NOTIFY_SOCKET` in the environment nobody is told, and nothing else changes.

use sd_notify::NotifyState;

/// All that was to start has started; also said when a reload is over, however it went. `status` is one line for people.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins. [`ready`] ends it.
pub(crate) fn reloading() {
    // systemd takes a reload for the one that it asked for only if it began after that.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager is not told of the reload"),
    }
}

/// The process ends in order.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager is not told what this process does");
    }
}
