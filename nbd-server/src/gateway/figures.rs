//! What the gateway's metrics are made of.

use std::fmt;
use std::sync::Arc;

use super::catalog::Catalog;
use crate::metrics::text::{ExportFigures, GroupFigures, Snapshot, Source};

/// Asks everything that counts.
pub(super) struct GatewayFigures {
    pub catalog: Arc<Catalog>,
    /// Open connections.
    pub connections: Box<dyn Fn() -> usize + Send + Sync>,
}

impl fmt::Debug for GatewayFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayFigures").finish_non_exhaustive()
    }
}

impl Source for GatewayFigures {
    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            connections: (self.connections)() as u64,
            ..Snapshot::default()
        };
        for group in self.catalog.directory().groups() {
            for (disk, size, meter) in group.meters() {
                snapshot.exports.push(ExportFigures {
                    name: format!("{}/{disk}", group.name()),
                    group: group.name().to_owned(),
                    size,
                    meter: Arc::clone(meter),
                });
            }
            snapshot.groups.push(GroupFigures {
                name: group.name().to_owned(),
                figures: group.figures(),
                commits: Arc::clone(group.commits()),
            });
        }
        for (name, served) in &self.catalog.directory().look().exports {
            snapshot.exports.push(ExportFigures {
                name: name.clone(),
                group: String::new(),
                size: served.raw().size(),
                meter: Arc::clone(served.meter()),
            });
        }
        snapshot
    }
}
