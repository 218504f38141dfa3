//! The gateway's side of the control API for exports outside of groups: HTTP in, changes of the catalog out.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};

use super::api::{ErrorDetail, ExportConfig, ExportStatus, RemovedReply, ResizeRequest};
use super::server::{Failure, Gatekeeper, Handled, read};
use crate::gateway::{Catalog, ChangeError};

impl From<ChangeError> for Failure {
    fn from(error: ChangeError) -> Self {
        Self(ErrorDetail {
            kind: error.kind(),
            message: error.to_string(),
        })
    }
}

impl Gatekeeper {
    /// Makes a change, which may block, and which is carried out even if the caller hangs up.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Catalog) -> Result<T, ChangeError> + Send + 'static,
    ) -> Handled<T> {
        let catalog = std::sync::Arc::clone(&self.catalog);
        let changed = tokio::task::spawn_blocking(move || change(&catalog)).await;
        // A panic of it has been reported by itself.
        Ok(Json(changed.unwrap_or(Err(ChangeError::Stopping))?))
    }
}

pub(super) async fn list(State(gate): State<Gatekeeper>) -> Json<Vec<ExportStatus>> {
    Json(gate.catalog.exports())
}

pub(super) async fn add(State(gate): State<Gatekeeper>, body: Bytes) -> Handled<ExportStatus> {
    let config: ExportConfig = read(&body)?;
    if !config.image.is_absolute() {
        return Err(Failure::bad_request(format!(
            "the image '{}' must be given with its full path",
            config.image.display()
        )));
    }
    gate.change(move |catalog| catalog.add(&config)).await
}

pub(super) async fn resize(
    State(gate): State<Gatekeeper>,
    Path(name): Path<String>,
    body: Bytes,
) -> Handled<ExportStatus> {
    let ResizeRequest { size, shrink } = read(&body)?;
    gate.change(move |catalog| catalog.resize(&name, size, shrink))
        .await
}

pub(super) async fn resize_default(gate: State<Gatekeeper>, body: Bytes) -> Handled<ExportStatus> {
    resize(gate, Path(String::new()), body).await
}

pub(super) async fn remove(
    State(gate): State<Gatekeeper>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Handled<RemovedReply> {
    let force = match query.as_deref() {
        None | Some("" | "force=false") => false,
        Some("force=true") => true,
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "'{other}' is not understood; an export is removed with ?force=true or without"
            )));
        }
    };
    gate.change(move |catalog| {
        catalog.remove(&name, force)?;
        Ok(RemovedReply { name })
    })
    .await
}

pub(super) async fn remove_default(
    gate: State<Gatekeeper>,
    query: RawQuery,
) -> Handled<RemovedReply> {
    remove(gate, Path(String::new()), query).await
}
