//! Carries orders out: child processes, HTTP requests and QMP, each in bounded time. Decides nothing.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use super::order::{Address, Order};
use super::{Action, Reach};
use crate::judge::Verdict;

/// Of what a program says no more than this is read, in bytes.
const MOST_SAID: u64 = 16 << 10;

/// Why an order could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// It could not be begun, or spoken with.
    #[error("{what}: {source}")]
    Io {
        /// What failed.
        what: String,
        /// Why.
        source: std::io::Error,
    },
    /// A program ended with an error.
    #[error("{program} ended with {status}: {said}")]
    Program {
        /// The program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        said: String,
    },
    /// QEMU did not do it.
    #[error(transparent)]
    Qemu(#[from] qemu_glue::Error),
    /// A server refused.
    #[error("{who} answered: {said}")]
    Refused {
        /// Who.
        who: String,
        /// What.
        said: String,
    },
    /// It took too long, and was ended.
    #[error("{what} took longer than {} s, and was ended", limit.as_secs())]
    TooLong {
        /// What.
        what: String,
        /// How long it could take.
        limit: Duration,
    },
}

/// What carries orders out for one VM.
#[derive(Debug, Clone)]
pub struct Hands {
    /// The program `epochgate`.
    pub epochgate: PathBuf,
    /// How the VM can be reached.
    pub reach: Reach,
    /// How long one order may take.
    pub limit: Duration,
}

impl Hands {
    /// Carries out all that an action is made of.
    ///
    /// # Errors
    /// [`ActionError`] of the first order that fails; what comes after it is not done.
    pub async fn carry_out(&self, action: &Action, verdict: &Verdict) -> Result<(), ActionError> {
        for order in super::order::orders(action, verdict, &self.reach) {
            let what = action.name();
            tokio::time::timeout(self.limit, self.obey(&order, verdict))
                .await
                .map_err(|_| ActionError::TooLong {
                    what: what.to_owned(),
                    limit: self.limit,
                })??;
        }
        Ok(())
    }

    async fn obey(&self, order: &Order, verdict: &Verdict) -> Result<(), ActionError> {
        let said = self.message(verdict).to_string();
        match order {
            Order::Epochgate(args) => {
                let mut command = Command::new(&self.epochgate);
                command.args(args);
                run(command, &said).await
            }
            Order::Program { words, state } => {
                let Some((program, args)) = words.split_first() else {
                    return Ok(());
                };
                let mut command = Command::new(program);
                command
                    .args(args)
                    .env("EPOCHGATE_VM", &self.reach.vm)
                    .env("EPOCHGATE_VERDICT", verdict.health.name())
                    .env("EPOCHGATE_KIND", verdict.kind.as_deref().unwrap_or(""))
                    .envs(state.iter().map(|dir| ("EPOCHGATE_STATE", dir)));
                run(command, &said).await
            }
            Order::Post(address) => post(address, said).await,
            Order::Reset => match &self.reach.qmp {
                Some(socket) => Ok(qemu_glue::reset(socket).await?),
                None => Ok(()),
            },
        }
    }

    /// What others are told of a verdict.
    #[must_use]
    pub fn message(&self, verdict: &Verdict) -> Value {
        json!({ "vm": self.reach.vm, "verdict": verdict })
    }
}

/// Runs a program with `said` on its standard input. It is ended with whoever waits for it.
async fn run(mut command: Command, said: &str) -> Result<(), ActionError> {
    let program = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let fail = |source| ActionError::Io {
        what: program.clone(),
        source,
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(fail)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read has closed it.
        let _not_read = stdin.write_all(said.as_bytes()).await;
    }
    let mut errors = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut stderr = stderr.take(MOST_SAID);
        stderr.read_to_end(&mut errors).await.map_err(fail)?;
        // What it says beyond that is let go, so that it can go on.
        let mut rest = stderr.into_inner();
        tokio::io::copy(&mut rest, &mut tokio::io::sink())
            .await
            .map_err(fail)?;
    }
    let status = child.wait().await.map_err(fail)?;
    if status.success() {
        return Ok(());
    }
    Err(ActionError::Program {
        program,
        status,
        said: String::from_utf8_lossy(&errors).trim().to_owned(),
    })
}

/// Sends `said` with POST; any 2xx is an answer.
async fn post(address: &Address, said: String) -> Result<(), ActionError> {
    let who = format!("the webhook at {}", address.authority);
    let io = |source| ActionError::Io {
        what: who.clone(),
        source,
    };
    let http = |error: hyper::Error| io(std::io::Error::other(error));
    let stream = TcpStream::connect(&address.authority).await.map_err(io)?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(http)?;
    let request = Request::post(&address.path)
        .header(HOST, &address.authority)
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(said)))
        .map_err(|error| io(std::io::Error::other(error)))?;
    // It ends with the sender, whatever becomes of the request.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection of a webhook has ended");
        }
    });
    let answer = sender.send_request(request).await.map_err(http)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(ActionError::Refused {
        who,
        said: status.to_string(),
    })
}
