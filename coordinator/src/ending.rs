//! How the VM of a source ends, whether it was launched there or taken over.

use std::time::Duration;

use crate::report::{Report, Reporter, emit};

/// A guest that was asked to power off gets this long; afterwards its QEMU is ended.
pub(crate) const POWER_DOWN_LIMIT: Duration = Duration::from_secs(30);
/// What is told to the standby and the gateway at the end gets this long: they may be gone.
pub(crate) const FAREWELL_LIMIT: Duration = Duration::from_secs(2);

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off or the operator stopped it.
    Planned(String),
    /// Another generation owns the disks: the VM goes on elsewhere.
    Fenced(String),
    /// The VM was lost here.
    Lost(String),
}

impl Ending {
    /// Why, for the operator.
    pub fn reason(&self) -> &str {
        match self {
            Self::Planned(reason) | Self::Fenced(reason) | Self::Lost(reason) => reason,
        }
    }

    pub(crate) fn report(&self, reporter: &Reporter) {
        let reason = self.reason().to_owned();
        emit(
            reporter,
            match self {
                Self::Planned(_) => Report::VmEnded {
                    reason,
                    planned: true,
                },
                Self::Lost(_) => Report::VmEnded {
                    reason,
                    planned: false,
                },
                Self::Fenced(_) => Report::Fenced { reason },
            },
        );
    }
}

/// Waits until then; forever if there is no then.
pub(crate) async fn until(then: Option<tokio::time::Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
