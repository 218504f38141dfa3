//! Commands to a running source: one line of JSON each way over its command socket, which is for its owner only.

use std::sync::{Arc, Mutex, PoisonError};

use coordinator::command::{Command, Moved, NotMoved};
use coordinator::report::{State, Status};
use nbd_server::Epoch;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// A request is shorter, in bytes.
const LINE_LIMIT: u64 = 4096;

/// What is asked.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Move the VM to its standby.
    Switchover,
}

/// What came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// The VM goes on elsewhere.
    Moved {
        /// At this standby.
        standby: String,
        /// From this epoch.
        epoch: Epoch,
    },
    /// Not done.
    Refused {
        /// Why.
        reason: String,
    },
}

impl Answer {
    fn refused(reason: impl ToString) -> Self {
        Self::Refused {
            reason: reason.to_string(),
        }
    }
}

impl From<Result<Moved, NotMoved>> for Answer {
    fn from(done: Result<Moved, NotMoved>) -> Self {
        match done {
            Ok(Moved { standby, epoch }) => Self::Moved { standby, epoch },
            Err(error) => Self::refused(error),
        }
    }
}

/// Takes requests, one after another, for as long as the role runs.
pub(super) async fn serve(
    listener: UnixListener,
    status: Arc<Mutex<Status>>,
    commands: mpsc::Sender<Command>,
) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let answer = match read(&mut stream).await {
            Ok(request) => carry_out(request, &status, &commands).await,
            Err(problem) => Answer::refused(problem),
        };
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        // The asker may be gone; what was asked is done all the same.
        let _ = stream.write_all(&line).await;
    }
}

async fn read(stream: &mut UnixStream) -> Result<Request, String> {
    let mut line = String::new();
    let mut reader = BufReader::new(stream.take(LINE_LIMIT));
    reader
        .read_line(&mut line)
        .await
        .map_err(|e| e.to_string())?;
    serde_json::from_str(&line).map_err(|e| format!("not a command: {e}"))
}

async fn carry_out(
    request: Request,
    status: &Mutex<Status>,
    commands: &mpsc::Sender<Command>,
) -> Answer {
    let Request::Switchover = request;
    let state = status.lock().unwrap_or_else(PoisonError::into_inner).state;
    // A standby that waits has nobody who would listen to a command.
    if state != State::Protected {
        return Answer::refused(NotMoved::Unprotected);
    }
    let (reply, done) = oneshot::channel();
    if commands.send(Command::Switchover { reply }).await.is_err() {
        return Answer::refused(NotMoved::Ended);
    }
    done.await.unwrap_or(Err(NotMoved::Ended)).into()
}
