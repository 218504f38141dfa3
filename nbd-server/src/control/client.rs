//! The caller's side of the control API. The source calls it while its guest is paused, so a request costs one write
//! and one read on a connection that is already open. Knows HTTP and the types of [`super::api`], nothing of groups.
//!
//! Connections are kept and reused; requests that run at the same time each have one of their own, so a seal never
//! waits behind a commit. A kept connection that turns out to be dead is replaced: always when the request can't have
//! reached the gateway, and once more after that for requests that do no harm when they happen twice.

mod clones;
mod exports;
mod history;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use epoch_log::{Epoch, Generation};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::{
    AttachReply, AttachRequest, CommitRequest, EpochReply, ErrorBody, ErrorKind, Event,
    GatewayStatus, GenerationRequest, GroupStatus, ParkReply, ParkRequest, Protection, SealNumber,
    SealReply, SealRequest, SyncRequest, TakeoverReply, TakeoverRequest,
};

/// Connections kept open between requests: the seal, the commit and the status of one source at the same time, and one
/// to spare.
const MAX_IDLE: usize = 4;
/// Longest line of an event stream, in bytes; a longer one is not from a gateway.
const MAX_EVENT_LINE: usize = 64 * 1024;
/// Longest reply body, in bytes: bounds what a confused peer can make us hold. A status of a thousand disks fits.
const MAX_REPLY: usize = 16 * 1024 * 1024;

/// Why a request to the gateway gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The gateway answered, and said no.
    #[error("{message}")]
    Refused {
        /// For programs.
        kind: ErrorKind,
        /// The gateway's sentence.
        message: String,
    },
    /// The gateway can't be reached. Whether the request was carried out is not known.
    #[error("the gateway's control socket {path} can't be reached; is `epochgate gateway` running?", path = .path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What came back is not the control API.
    #[error("the control socket {path} gave an answer that is not of this version of the control API: {what}", path = .path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

impl ControlError {
    /// The kind of a refusal; none if the gateway did not answer.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            Self::Unreachable { .. } | Self::Malformed { .. } => None,
        }
    }

    /// Another owner has the group: the caller's VM must stop.
    pub fn is_fenced(&self) -> bool {
        self.kind() == Some(ErrorKind::Fenced)
    }
}

type Sender = SendRequest<Full<Bytes>>;

/// A client of one gateway. Cheap to clone; clones share the kept connections. All methods need a tokio runtime.
///
/// Dropping the future of a request drops its connection, but the gateway may carry the request out all the same.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    idle: Mutex<Vec<Sender>>,
}

/// Whether a request may be sent again when its reply was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Safe,
    Never,
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`] if nobody listens there.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, ControlError> {
        let client = Self {
            shared: Arc::new(Shared {
                path: path.as_ref().to_owned(),
                idle: Mutex::default(),
            }),
        };
        let sender = client.dial().await?;
        client.keep(sender);
        Ok(client)
    }

    /// The control socket.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The cold start of a VM: makes `owner` the active source of the group, in a new generation and in sync mode.
    /// Everyone else is fenced, and any memory that a standby holds is void. The same answer again if `owner` already
    /// is the active source.
    pub async fn attach(&self, group: &str, owner: &str) -> Result<AttachReply, ControlError> {
        let body = AttachRequest {
            owner: owner.to_owned(),
        };
        self.post(group, "attach", &body, Repeat::Safe).await
    }

    /// Lets the attachments of `standby` in: they read committed state, and write after the takeover.
    pub async fn park(&self, group: &str, standby: &str) -> Result<ParkReply, ControlError> {
        let body = ParkRequest {
            standby: standby.to_owned(),
        };
        self.post(group, "park", &body, Repeat::Safe).await
    }

    /// Seals the open epoch: the cut over all disks of the group. Call it while the guest is stopped and drained. If its answer is lost,
    /// nobody knows whether there was a cut: [`Client::seal_as`] can be asked again.
    pub async fn seal(
        &self,
        group: &str,
        generation: Generation,
    ) -> Result<SealReply, ControlError> {
        let body = SealRequest {
            generation,
            epoch: None,
            protection: None,
        };
        self.post(group, "seal", &body, Repeat::Never).await
    }

    /// The same, by its number: to ask again while the guest is still stopped is no second cut, and a copy that arrives after its
    /// protection is over is none at all.
    pub async fn seal_as(
        &self,
        group: &str,
        generation: Generation,
        number: SealNumber,
    ) -> Result<SealReply, ControlError> {
        let body = SealRequest {
            generation,
            epoch: Some(number.epoch),
            protection: number.protection,
        };
        self.post(group, "seal", &body, Repeat::Safe).await
    }

    /// COMMIT 2 of `epoch`, which `standby` has acknowledged (COMMIT 1). Returns when the commit record is durable,
    /// with the newest committed epoch. Committing what is committed already is no error.
    pub async fn commit(
        &self,
        group: &str,
        generation: Generation,
        epoch: Epoch,
        standby: &str,
    ) -> Result<Epoch, ControlError> {
        let body = CommitRequest {
            generation,
            epoch,
            standby: standby.to_owned(),
        };
        self.post(group, "commit", &body, Repeat::Safe)
            .await
            .map(|reply: EpochReply| reply.epoch)
    }

    /// The standby is lost: drains the group to sync mode. When it returns, everything that was held is committed,
    /// writes go through, and no standby can take over until a new checkpoint is committed. Returns the newest
    /// committed epoch: the next seal has to get the number after it.
    ///
    /// `protection` is what is given up. Without it a copy that arrives late gives up whatever is at hand then.
    pub async fn sync(
        &self,
        group: &str,
        generation: Generation,
        protection: Option<Protection>,
    ) -> Result<Epoch, ControlError> {
        let body = SyncRequest {
            generation,
            protection,
        };
        self.post(group, "sync", &body, Repeat::Safe)
            .await
            .map(|reply: EpochReply| reply.epoch)
    }

    /// Makes `standby` the owner of the group, if it holds the memory of the last committed epoch. From the reply on
    /// its parked attachments can write, and everyone else is fenced. The same answer again if it has happened.
    pub async fn takeover(
        &self,
        group: &str,
        standby: &str,
    ) -> Result<TakeoverReply, ControlError> {
        let body = TakeoverRequest {
            standby: standby.to_owned(),
        };
        self.post(group, "takeover", &body, Repeat::Safe).await
    }

    /// Drops everything that is not committed. As the guest may have seen it, all attachments are cut and the
    /// generation rises: the caller is fenced afterwards. Returns the newest committed epoch.
    pub async fn abort(&self, group: &str, generation: Generation) -> Result<Epoch, ControlError> {
        self.post(
            group,
            "abort",
            &GenerationRequest { generation },
            Repeat::Never,
        )
        .await
        .map(|reply: EpochReply| reply.epoch)
    }

    /// Lets writes in that wait for memory, until the next seal: call it before stopping the guest, as QEMU's `stop`
    /// waits for them.
    pub async fn relieve(&self, group: &str, generation: Generation) -> Result<(), ControlError> {
        self.post(
            group,
            "relieve",
            &GenerationRequest { generation },
            Repeat::Safe,
        )
        .await
        .map(|_: EpochReply| ())
    }

    /// The planned end of the VM: commits and applies what is held, and gives the group up. Returns the newest
    /// committed epoch.
    pub async fn detach(&self, group: &str, generation: Generation) -> Result<Epoch, ControlError> {
        self.post(
            group,
            "detach",
            &GenerationRequest { generation },
            Repeat::Never,
        )
        .await
        .map(|reply: EpochReply| reply.epoch)
    }

    /// The state of the whole gateway.
    pub async fn status(&self) -> Result<GatewayStatus, ControlError> {
        self.call(Method::GET, "/v1/status", Bytes::new(), Repeat::Safe)
            .await
    }

    /// The state of one group.
    pub async fn group(&self, group: &str) -> Result<GroupStatus, ControlError> {
        self.call(
            Method::GET,
            &format!("/v1/groups/{group}"),
            Bytes::new(),
            Repeat::Safe,
        )
        .await
    }

    /// The events of a group for the owner of `generation`. Refused as fenced if that is not current. The first event
    /// is [`Event::Subscribed`], then the stream is complete from that moment on.
    pub async fn events(
        &self,
        group: &str,
        generation: Generation,
    ) -> Result<EventStream, ControlError> {
        let target = format!("/v1/groups/{group}/events?generation={generation}");
        let mut sender = self.dial().await?;
        let request = self.request(Method::GET, &target, Bytes::new())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| self.unreachable(e))?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        let path = self.shared.path.clone();
        Ok(EventStream {
            path,
            body: response.into_body(),
            buffer: BytesMut::new(),
            _sender: sender,
        })
    }

    async fn post<B: Serialize, R: DeserializeOwned>(
        &self,
        group: &str,
        verb: &str,
        body: &B,
        repeat: Repeat,
    ) -> Result<R, ControlError> {
        let body = serde_json::to_vec(body).map_err(|e| self.malformed(e))?;
        self.call(
            Method::POST,
            &format!("/v1/groups/{group}/{verb}"),
            body.into(),
            repeat,
        )
        .await
    }

    async fn call<R: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
        repeat: Repeat,
    ) -> Result<R, ControlError> {
        loop {
            let kept = self.take();
            let fresh = kept.is_none();
            let mut sender = match kept {
                Some(sender) => sender,
                None => self.dial().await?,
            };
            // An error here, or a cancelled send, says that no byte of the request left.
            if sender.ready().await.is_err() && !fresh {
                continue;
            }
            let request = self.request(method.clone(), target, body.clone())?;
            let outcome = match sender.send_request(request).await {
                Ok(response) => self.read_reply(response, sender).await,
                Err(e) if e.is_canceled() && !fresh => continue,
                Err(e) => Err(self.unreachable(e)),
            };
            match outcome {
                Err(ControlError::Unreachable { .. }) if !fresh && repeat == Repeat::Safe => {}
                outcome => return outcome,
            }
        }
    }

    async fn read_reply<R: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
        sender: Sender,
    ) -> Result<R, ControlError> {
        if response.status() != StatusCode::OK {
            let refusal = self.refusal(response).await;
            self.keep(sender);
            return Err(refusal);
        }
        let body = self.read_body(response).await?;
        self.keep(sender);
        serde_json::from_slice(&body).map_err(|e| self.malformed(e))
    }

    async fn refusal(&self, response: Response<Incoming>) -> ControlError {
        let status = response.status();
        match self.read_body(response).await {
            Err(e) => e,
            Ok(body) => match serde_json::from_slice::<ErrorBody>(&body) {
                Ok(ErrorBody { error }) => ControlError::Refused {
                    kind: error.kind,
                    message: error.message,
                },
                Err(_) => {
                    self.malformed(format!("HTTP status {status} without an error in its body"))
                }
            },
        }
    }

    async fn read_body(&self, response: Response<Incoming>) -> Result<Bytes, ControlError> {
        let limited = http_body_util::Limited::new(response.into_body(), MAX_REPLY);
        match limited.collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(e) if e.is::<http_body_util::LengthLimitError>() => {
                Err(self.malformed(format!("a reply of more than {MAX_REPLY} bytes")))
            }
            Err(e) => Err(self.unreachable(e)),
        }
    }

    fn request(
        &self,
        method: Method,
        target: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ControlError> {
        Request::builder()
            .method(method)
            .uri(target)
            .header(hyper::header::HOST, "gateway")
            .header(hyper::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| self.malformed(format!("{target:?} can't be asked for: {e}")))
    }

    async fn dial(&self) -> Result<Sender, ControlError> {
        let path = &self.shared.path;
        let stream =
            UnixStream::connect(path)
                .await
                .map_err(|source| ControlError::Unreachable {
                    path: path.clone(),
                    source,
                })?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.unreachable(e))?;
        // It ends with the sender; what goes wrong on it shows as an error of the request.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take(&self) -> Option<Sender> {
        let mut idle = self
            .shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while let Some(sender) = idle.pop() {
            if !sender.is_closed() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self
            .shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE && !sender.is_closed() {
            idle.push(sender);
        }
    }

    fn unreachable(
        &self,
        error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ControlError {
        ControlError::Unreachable {
            path: self.shared.path.clone(),
            source: io::Error::new(io::ErrorKind::ConnectionAborted, error),
        }
    }

    fn malformed(&self, what: impl ToString) -> ControlError {
        ControlError::Malformed {
            path: self.shared.path.clone(),
            what: what.to_string(),
        }
    }
}

/// The events of one group, in order.
#[derive(Debug)]
pub struct EventStream {
    path: PathBuf,
    body: Incoming,
    buffer: BytesMut,
    /// Keeps the connection open.
    _sender: Sender,
}

impl EventStream {
    /// The next event; none when the gateway is gone. Can be dropped and called again without losing an event.
    ///
    /// # Errors
    /// [`ControlError::Malformed`] if a line is no event. A broken connection is the end of the stream, not an error.
    pub async fn next(&mut self) -> Result<Option<Event>, ControlError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end);
                self.buffer.advance(1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| self.malformed(e));
            }
            if self.buffer.len() > MAX_EVENT_LINE {
                return Err(self.malformed(format!("a line of more than {MAX_EVENT_LINE} bytes")));
            }
            match self.body.frame().await {
                None | Some(Err(_)) => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }

    fn malformed(&self, what: impl ToString) -> ControlError {
        ControlError::Malformed {
            path: self.path.clone(),
            what: what.to_string(),
        }
    }
}
