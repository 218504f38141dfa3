//! The gateway's side of the control API: HTTP in, requests to groups out. Decides nothing.

use std::convert::Infallible;
use std::future::Future;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use epoch_log::Generation;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::api::{
    AttachReply, AttachRequest, CommitRequest, EpochReply, ErrorBody, ErrorDetail, ErrorKind,
    Event, GatewayStatus, GenerationRequest, GroupStatus, ParkReply, ParkRequest, SealReply,
    SealRequest, SyncRequest, TakeoverReply, TakeoverRequest,
};
use super::{clones, exports, history};
use crate::gateway::Catalog;
use crate::group::barriers::{Input, SealNumber};
use crate::group::directory::export_name;
use crate::group::{Answer, Group, GroupError, Refusal};

/// Events under way to one reader; when it is slower, it is told where things stand instead.
const EVENTS_UNDER_WAY: usize = 16;

/// What the handlers need.
#[derive(Debug, Clone)]
pub struct Gatekeeper {
    /// What is served.
    pub catalog: Arc<Catalog>,
    /// Where NBD is served, for the status.
    pub listen: Vec<String>,
    /// Turns true when the gateway stops.
    pub stopping: watch::Receiver<bool>,
}

/// Serves the control API on `listener` until [`Gatekeeper::stopping`].
///
/// # Errors
/// What the system says about the socket.
pub async fn serve(listener: UnixListener, gatekeeper: Gatekeeper) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut stopping = gatekeeper.stopping.clone();
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/exports", get(exports::list).post(exports::add))
        // The default export has the empty name.
        .route(
            "/v1/exports/",
            patch(exports::resize_default).delete(exports::remove_default),
        )
        .route(
            "/v1/exports/{export}",
            patch(exports::resize).delete(exports::remove),
        )
        .route("/v1/groups/{group}", get(group_status))
        .route(
            "/v1/groups/{group}/clones",
            get(clones::list).post(clones::add),
        )
        .route("/v1/groups/{group}/clones/{clone}", delete(clones::remove))
        .route("/v1/groups/{group}/events", get(events))
        .route("/v1/groups/{group}/attach", post(attach))
        .route("/v1/groups/{group}/park", post(park))
        .route("/v1/groups/{group}/seal", post(seal))
        .route("/v1/groups/{group}/commit", post(commit))
        .route("/v1/groups/{group}/sync", post(sync))
        .route("/v1/groups/{group}/takeover", post(takeover))
        .route("/v1/groups/{group}/abort", post(abort))
        .route("/v1/groups/{group}/relieve", post(relieve))
        .route("/v1/groups/{group}/detach", post(detach))
        .route("/v1/groups/{group}/history", get(history::points))
        .route("/v1/groups/{group}/pins", post(history::pin))
        .route("/v1/groups/{group}/pins/{pin}", delete(history::unpin))
        .route(
            "/v1/groups/{group}/freeze",
            post(history::freeze).delete(history::thaw),
        )
        .route("/v1/groups/{group}/rewind", post(history::rewind))
        .fallback(async || {
            Failure::bad_request(
                "there is no such request in the control API; see `epochgate --help`",
            )
        })
        .with_state(gatekeeper);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            // An error says that the gateway is gone, which is a stop as well.
            let _ = stopping.wait_for(|stopping| *stopping).await;
        })
        .await
}

/// A request that failed.
#[derive(Debug)]
pub(super) struct Failure(pub(super) ErrorDetail);

impl Failure {
    pub(super) fn bad_request(message: impl ToString) -> Self {
        Self(ErrorDetail {
            kind: ErrorKind::BadRequest,
            message: message.to_string(),
        })
    }
}

impl From<GroupError> for Failure {
    fn from(error: GroupError) -> Self {
        Self(ErrorDetail {
            kind: error.kind(),
            message: error.to_string(),
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status())
            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

pub(super) type Handled<T> = Result<Json<T>, Failure>;

/// The body, whatever its content type says.
pub(super) fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|e| Failure::bad_request(format!("the request's body is not understood: {e}")))
}

impl Gatekeeper {
    fn group(&self, name: &str) -> Result<Arc<Group>, Failure> {
        let group = self.catalog.directory().group(name);
        group.map_err(|message| {
            Failure(ErrorDetail {
                kind: ErrorKind::UnknownGroup,
                message,
            })
        })
    }

    /// Makes a request that is carried out even if the caller hangs up.
    async fn ask(&self, group: &str, input: Input) -> Result<Answer, Failure> {
        Ok(self.group(group)?.request(input).await?)
    }
}

fn export_names(group: &Group, instance: &str) -> std::collections::BTreeMap<String, String> {
    group
        .disk_names()
        .map(|disk| (disk.to_owned(), export_name(group.name(), disk, instance)))
        .collect()
}

async fn status(State(gate): State<Gatekeeper>) -> Json<GatewayStatus> {
    Json(GatewayStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        listen: gate.listen.clone(),
        groups: gate
            .catalog
            .directory()
            .groups()
            .iter()
            .map(|group| group.status())
            .collect(),
        exports: gate.catalog.exports(),
        reload: gate.catalog.last_reload(),
        storage: gate.catalog.storage(),
    })
}

async fn group_status(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
) -> Handled<GroupStatus> {
    Ok(Json(gate.group(&group)?.status()))
}

async fn attach(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<AttachReply> {
    let AttachRequest { owner } = read(&body)?;
    let answer = gate
        .ask(
            &group,
            Input::AttachSource {
                owner: owner.clone(),
            },
        )
        .await?;
    Ok(Json(AttachReply {
        generation: answer.generation,
        committed: answer.committed,
        exports: export_names(&*gate.group(&group)?, &owner),
    }))
}

async fn park(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<ParkReply> {
    let ParkRequest { standby } = read(&body)?;
    let group = gate.group(&group)?;
    group.park(&standby)?;
    Ok(Json(ParkReply {
        exports: export_names(&group, &standby),
    }))
}

async fn seal(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<SealReply> {
    let SealRequest {
        generation,
        epoch,
        protection,
    } = read(&body)?;
    let number = epoch.map(|epoch| SealNumber { epoch, protection });
    if number.is_none() && protection.is_some() {
        return Err(Failure::bad_request(
            "a seal that names its protection has to name its epoch too",
        ));
    }
    let group = gate.group(&group)?;
    // The guest is paused: no detour over another thread, unless it has to wait anyway.
    let sealed = match group.try_seal(generation, number) {
        Err(GroupError::Refused(Refusal::Busy | Refusal::Unsettled)) => {
            let group = Arc::clone(&group);
            tokio::task::spawn_blocking(move || group.seal_as(generation, number))
                .await
                .unwrap_or(Err(GroupError::Stopping))?
        }
        outcome => outcome?,
    };
    let sealed = group.make_safe(generation, sealed).await?;
    Ok(Json(SealReply {
        epoch: sealed.epoch,
        bytes: sealed.bytes,
        empty_first: sealed.empty_first,
    }))
}

async fn commit(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<EpochReply> {
    let CommitRequest {
        generation,
        epoch,
        standby,
    } = read(&body)?;
    epoch_reply(gate.ask(
        &group,
        Input::Commit {
            generation,
            epoch,
            standby: Some(standby),
        },
    ))
    .await
}

async fn sync(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<EpochReply> {
    let SyncRequest {
        generation,
        protection,
    } = read(&body)?;
    epoch_reply(gate.ask(
        &group,
        Input::DrainToSync {
            generation,
            protection,
        },
    ))
    .await
}

async fn takeover(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<TakeoverReply> {
    let TakeoverRequest { standby } = read(&body)?;
    let answer = gate.ask(&group, Input::Takeover { standby }).await?;
    Ok(Json(TakeoverReply {
        generation: answer.generation,
        epoch: answer.committed,
    }))
}

async fn abort(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<EpochReply> {
    let GenerationRequest { generation } = read(&body)?;
    epoch_reply(gate.ask(&group, Input::Abort { generation })).await
}

async fn detach(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<EpochReply> {
    let GenerationRequest { generation } = read(&body)?;
    epoch_reply(gate.ask(&group, Input::Detach { generation })).await
}

async fn relieve(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<EpochReply> {
    let GenerationRequest { generation } = read(&body)?;
    let epoch = gate.group(&group)?.relieve(generation)?;
    Ok(Json(EpochReply { epoch }))
}

async fn epoch_reply(
    request: impl Future<Output = Result<Answer, Failure>>,
) -> Handled<EpochReply> {
    Ok(Json(EpochReply {
        epoch: request.await?.committed,
    }))
}

/// The `generation=G` of an event stream's query.
fn generation_of(query: Option<&str>) -> Result<Generation, Failure> {
    query
        .and_then(|query| {
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix("generation="))
        })
        .and_then(|number| number.parse().ok())
        .map(Generation)
        .ok_or_else(|| {
            Failure::bad_request("an event stream needs ?generation=G, the caller's generation")
        })
}

async fn events(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let generation = generation_of(query.as_deref())?;
    let group = gate.group(&group)?;
    let events = group.subscribe(generation)?;
    let (lines, body) = tokio::sync::mpsc::channel(EVENTS_UNDER_WAY);
    tokio::spawn(send_events(
        group,
        generation,
        events,
        lines,
        gate.stopping.clone(),
    ));
    let body = Body::from_stream(ReceiverStream::new(body).map(Ok::<_, Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Sends events until the caller hangs up, is fenced, or the gateway stops.
async fn send_events(
    group: Arc<Group>,
    generation: Generation,
    mut events: broadcast::Receiver<Event>,
    lines: tokio::sync::mpsc::Sender<Bytes>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut next = Some(Event::Subscribed { generation });
    loop {
        if let Some(event) = next.take() {
            let last = matches!(event, Event::Fenced { .. });
            let Ok(mut line) = serde_json::to_vec(&event) else {
                return;
            };
            line.push(b'\n');
            if lines.send(line.into()).await.is_err() || last {
                return;
            }
        }
        let event = tokio::select! {
            event = events.recv() => event,
            () = lines.closed() => return,
            _ = stopping.wait_for(|stopping| *stopping) => return,
        };
        next = match event {
            Ok(event) => Some(event),
            // Too slow: what matters is whether it is fenced.
            Err(broadcast::error::RecvError::Lagged(_)) => group.fenced_since(generation),
            Err(broadcast::error::RecvError::Closed) => return,
        };
    }
}
