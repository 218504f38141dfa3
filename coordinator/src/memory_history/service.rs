//! Asking for memory points: of the standby that keeps them, over a socket in their directory, or of the directory itself when nobody
//! has it. One line of JSON each way.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use epoch_log::history::Retention;
use nbd_server::Epoch;
use nbd_server::group::history::now_ms;
use serde::{Deserialize, Serialize};

use super::head::MemoryPoint;
use super::keeper::Shared;
use super::store::{Store, StoreError};
use crate::link::chain;

/// The socket, in the directory of the points.
const SOCKET: &str = "keeper.sock";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    List,
    Export { epoch: Epoch, to: PathBuf },
}

/// The answer to either: the points, or the one that was written out.
type Reply = Result<Vec<MemoryPoint>, String>;

/// Why memory points can't be had.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody keeps them now, and they can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The standby that keeps them said no.
    #[error("{0}")]
    Refused(String),
    /// It did not answer.
    #[error("the standby that keeps the points in {} does not answer", dir.display())]
    Silent {
        /// Their directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The points in `dir`, oldest first.
///
/// # Errors
/// [`AskError`].
pub fn list(dir: &Path) -> Result<Vec<MemoryPoint>, AskError> {
    ask(dir, &Request::List)
}

/// Writes the point of this epoch of the group to `to`, a directory that is made, as a saved state.
///
/// # Errors
/// [`AskError`].
pub fn export(dir: &Path, epoch: Epoch, to: &Path) -> Result<(), AskError> {
    let to = std::path::absolute(to).map_err(|source| StoreError::File {
        action: "find",
        path: to.to_owned(),
        source,
    })?;
    ask(dir, &Request::Export { epoch, to }).map(drop)
}

fn ask(dir: &Path, request: &Request) -> Result<Vec<MemoryPoint>, AskError> {
    let Ok(stream) = UnixStream::connect(dir.join(SOCKET)) else {
        let store = Store::open(dir, None, Retention::unlimited(), now_ms())?;
        return Ok(answer(request, store.shelf())?);
    };
    let exchange = || -> io::Result<Reply> {
        serde_json::to_writer(&stream, request)?;
        (&stream).write_all(b"\n")?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    let reply = exchange().map_err(|source| AskError::Silent {
        dir: dir.to_owned(),
        source,
    })?;
    reply.map_err(AskError::Refused)
}

fn answer(request: &Request, shelf: &super::store::Shelf) -> Result<Vec<MemoryPoint>, StoreError> {
    match request {
        Request::List => Ok(shelf.points()),
        Request::Export { epoch, to } => {
            let exported = shelf.export(*epoch, to);
            exported.map(|point| vec![point])
        }
    }
}

/// Answers requests in a thread of its own, for as long as the process lives.
///
/// # Errors
/// The socket can't be made.
pub(super) fn serve(dir: &Path, shared: &Arc<Shared>) -> io::Result<()> {
    let socket = dir.join(SOCKET);
    // The directory is ours: whoever made this one is gone.
    if let Err(error) = std::fs::remove_file(&socket)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&socket)?;
    let shared = Arc::clone(shared);
    let run = move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = converse(&stream, &shared) {
                tracing::debug!(%error, "somebody asked for memory points and went away");
            }
        }
    };
    std::thread::Builder::new()
        .name("memory points".into())
        .spawn(run)?;
    Ok(())
}

fn converse(stream: &UnixStream, shared: &Shared) -> io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let request = serde_json::from_str(&line)?;
    let shelf = shared.shelf.lock();
    let shelf = shelf.unwrap_or_else(PoisonError::into_inner).clone();
    let reply: Reply = match shelf {
        Some(shelf) => answer(&request, &shelf).map_err(|error| chain(&error)),
        None => Err("the memory history of this standby is not open; its log says why".to_owned()),
    };
    serde_json::to_writer(stream, &reply)?;
    (&mut &*stream).write_all(b"\n")
}
