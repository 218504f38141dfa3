//! A gateway with its control API for the benches that look at epochs: a process of its own, configured by a file, asked
//! over its sockets, as a coordinator would.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nbd_server::GatewayConfig;
use nbd_server::control::api::GroupStatus;
use nbd_server::control::client::Client;

use super::child::Server;
use super::interrupt;
use crate::load::Target;

/// How long a backlog may take to be applied.
const APPLY: Duration = Duration::from_secs(600);

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    server: Server,
    runtime: tokio::runtime::Runtime,
    client: Client,
    socket: PathBuf,
}

impl Gateway {
    /// Starts a gateway with `config`, whose sockets and file are in `dir`.
    pub(crate) fn start(mut config: GatewayConfig, dir: &Path) -> anyhow::Result<Self> {
        let socket = dir.join("nbd.sock");
        let control = dir.join("control.sock");
        config.listen = vec![format!("unix:{}", socket.display())];
        config.control = Some(control.clone());
        let file = dir.join("gateway.toml");
        std::fs::write(&file, toml::to_string(&config)?)?;
        let me = std::env::current_exe().context("this program's own path is not known")?;
        let mut command = Command::new(me);
        command.arg("gateway").arg("--config").arg(&file);
        let mut server = Server::start(command, &socket, &dir.join("gateway.log"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        // The control socket comes after the NBD socket.
        let deadline = Instant::now() + Duration::from_secs(20);
        let client = loop {
            server.alive()?;
            match runtime.block_on(Client::connect(&control)) {
                Ok(client) => break client,
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        Ok(Self {
            server,
            runtime,
            client,
            socket,
        })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// An error with its last words if it has ended.
    pub(crate) fn alive(&mut self) -> anyhow::Result<()> {
        self.server.alive()
    }

    /// Asks its control API.
    pub(crate) fn ask<F: Future>(&self, question: impl FnOnce(Client) -> F) -> F::Output {
        self.runtime.block_on(question(self.client.clone()))
    }

    /// The state of a group.
    pub(crate) fn group(&self, name: &str) -> anyhow::Result<GroupStatus> {
        Ok(self.ask(|client| async move { client.group(name).await })?)
    }

    /// Where an export is.
    pub(crate) fn target(&self, export: &str) -> Target {
        Target {
            socket: self.socket.clone(),
            export: export.to_owned(),
        }
    }

    /// Waits until all that is committed is in the images, durably.
    pub(crate) fn applied(&self, group: &str) -> anyhow::Result<()> {
        let deadline = Instant::now() + APPLY;
        loop {
            interrupt::check()?;
            let status = self.group(group)?;
            if status.applied == status.committed && status.backlog == 0 {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the gateway has not applied its epochs within {} s: {}",
                APPLY.as_secs(),
                status.last_error.unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
