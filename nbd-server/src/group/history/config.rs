//! What a group is told to keep of its past, and what follows for when it holds writes. Knows no files.

use serde::{Deserialize, Serialize};

use super::super::barriers::Holds;
use super::super::{GroupConfig, GroupMode};

/// What a group keeps of its past.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryConfig {}

impl GroupConfig {
    /// Whether the group keeps its past. Then nothing may write to an image but what saves first what is there.
    pub fn keeps_history(&self) -> bool {
        self.history.is_some()
    }

    /// When the group holds writes in epochs.
    pub fn holds(&self) -> Holds {
        match self.mode {
            _ if self.keeps_history() => Holds::Always,
            GroupMode::Sync => Holds::Protected,
            GroupMode::Async => Holds::Alone,
        }
    }
}
