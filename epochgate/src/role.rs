//! What a source and a standby have in common as processes: their events, and the socket that answers `epochgate status`.
//!
//! The socket is `{runtime_dir}/{role}-{vm}.sock`: whoever connects gets the present [`Status`] as one JSON object. Commands have a
//! socket of their own, `{role}-{vm}.command`.

pub(crate) mod commands;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use coordinator::Ending;
use coordinator::command::Command;
use coordinator::report::{Report, Reporter, Stamped, Status};
use qemu_glue::VmDescription;
use tokio::sync::{mpsc, watch};

use crate::cli::RoleArgs;
use crate::exit::usage;
use crate::output;
use crate::runtime;
use crate::service;
use crate::status_socket::{StatusSocket, listen, prepare_runtime_dir};

/// Runs a role whose configuration has been checked but for its VM, to its end: `work` is given the place for its events and the
/// signals to stop. With `--check` nothing runs.
pub(crate) fn run(
    role: &str,
    args: &RoleArgs,
    vm: &VmDescription,
    runtime_dir: &Path,
    work: impl AsyncFnOnce(
        Reporter,
        mpsc::Receiver<Command>,
        watch::Receiver<u32>,
    ) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    // Before the gateway hears of it: attaching fences whoever has the disks.
    vm.validate(&[]).map_err(usage)?;
    if args.config.check {
        println!("{} is right", args.config.config.display());
        return Ok(ExitCode::SUCCESS);
    }
    prepare_runtime_dir(runtime_dir)?;
    runtime::tokio()?.block_on(async {
        let (role, commands) = Role::start(role, &vm.name, runtime_dir, args.json).await?;
        let stop = runtime::stop_signals()?;
        let mut stopping = stop.clone();
        // Both in one task: the work may be over before another one has been scheduled, and the process with it.
        let mut work = std::pin::pin!(work(role.reporter(), commands, stop));
        let ended = tokio::select! {
            biased;
            _ = stopping.changed() => None,
            ended = &mut work => Some(ended),
        };
        service::stopping();
        match ended {
            Some(ended) => ended,
            None => work.await,
        }
    })
}

/// A running role. Its sockets are removed when it is dropped.
#[derive(Debug)]
struct Role {
    status: Arc<Mutex<Status>>,
    commands_at: PathBuf,
    json: bool,
    _answers: StatusSocket,
}

impl Role {
    /// Starts answering `epochgate status`, and taking commands. Fails if the same role already runs for this VM.
    async fn start(
        role: &str,
        vm: &str,
        runtime_dir: &Path,
        json: bool,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Command>)> {
        let status = Arc::new(Mutex::new(Status::new(role, vm)));
        let at_present = Arc::clone(&status);
        let answers = StatusSocket::start(runtime_dir, role, vm, move || {
            let status = at_present.lock().unwrap_or_else(PoisonError::into_inner);
            serde_json::to_vec(&*status).unwrap_or_default()
        })
        .await?;
        let commands_at = command_socket(runtime_dir, role, vm);
        let commands_listener = listen(&commands_at)?;
        let (sender, commands) = mpsc::channel(1);
        tokio::spawn(commands::serve(
            commands_listener,
            Arc::clone(&status),
            sender,
        ));
        let role = Self {
            status,
            commands_at,
            json,
            _answers: answers,
        };
        Ok((role, commands))
    }

    /// Keeps the status, prints events if that was asked for, and tells a service manager of the event that makes the role ready.
    fn reporter(&self) -> Reporter {
        let (status, json) = (Arc::clone(&self.status), self.json);
        Arc::new(move |event: Stamped| {
            let mut status = status.lock().unwrap_or_else(PoisonError::into_inner);
            status.apply(&event.report);
            match &event.report {
                Report::VmStarted { vm, .. } => service::ready(&format!("runs the VM {vm}")),
                Report::Listening { address, .. } => {
                    service::ready(&format!("waits for a source on {address}"));
                }
                _ => {}
            }
            if json {
                output::event_line(&event);
            }
        })
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.commands_at);
    }
}

/// Where a role takes commands.
pub(crate) fn command_socket(runtime_dir: &Path, role: &str, vm: &str) -> PathBuf {
    runtime_dir.join(format!("{role}-{vm}.command"))
}

/// A VM that ended as planned is good; one that was fenced or lost did not stay protected here.
pub(crate) fn exit_code(ending: &Ending) -> ExitCode {
    match ending {
        Ending::Planned(_) => ExitCode::SUCCESS,
        Ending::Fenced(_) | Ending::Lost(_) => ExitCode::FAILURE,
    }
}
