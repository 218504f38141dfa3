//! The control API for clones of a group: its words, and the gateway's side of it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use epoch_log::Epoch;
use serde::{Deserialize, Serialize};

use super::api::{Point, RemovedReply};
use super::server::{Failure, Gatekeeper, Handled, read};

/// Make a writable clone of all disks of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneRequest {
    /// Its name: 1 to 58 ASCII letters, digits, `-`, `_` or `.`, with none of these last at the beginning.
    pub name: String,
    /// The point in time that it is of. Without: the newest committed epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Point>,
    /// Directory for what is written to it, with its full path; empty, or not there yet. Without: one beside the group's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
}

/// A clone of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneStatus {
    /// Its name.
    pub name: String,
    /// The epoch that it is of; none if that can't be read.
    pub epoch: Option<Epoch>,
    /// When that was cut, in milliseconds since 1970.
    pub time_ms: Option<u64>,
    /// When the clone was made, in milliseconds since 1970.
    pub created_ms: Option<u64>,
    /// Directory of what is written to it.
    pub dir: PathBuf,
    /// Name of each disk, and the NBD export name of the clone's.
    pub exports: BTreeMap<String, String>,
    /// Bytes of the blocks that were written, holes included.
    pub written: u64,
    /// Open NBD connections.
    pub connections: u64,
    /// Why it can't be attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

pub(super) async fn list(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
) -> Handled<Vec<CloneStatus>> {
    gate.change(move |catalog| catalog.clones(&group)).await
}

pub(super) async fn add(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<CloneStatus> {
    let CloneRequest { name, at, dir } = read(&body)?;
    if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_absolute()) {
        return Err(Failure::bad_request(format!(
            "the directory '{}' must be given with its full path",
            dir.display()
        )));
    }
    gate.change(move |catalog| catalog.add_clone(&group, &name, at.as_ref(), dir.as_deref()))
        .await
}

pub(super) async fn remove(
    State(gate): State<Gatekeeper>,
    Path((group, name)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Handled<RemovedReply> {
    let force = match query.as_deref() {
        None | Some("" | "force=false") => false,
        Some("force=true") => true,
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "'{other}' is not understood; a clone is removed with ?force=true or without"
            )));
        }
    };
    gate.change(move |catalog| {
        catalog.remove_clone(&group, &name, force)?;
        Ok(RemovedReply { name })
    })
    .await
}
