//! A gateway of plain images in a directory of its own, and QEMU's client as a batch or in a dialogue.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::Duration;

use nbd_server::control::api::{ExportConfig, ExportStatus};
use nbd_server::control::client::{Client, ControlError};
use nbd_server::gateway::Reloaded;
use nbd_server::{Gateway, GatewayConfig};
use tempfile::TempDir;

/// A running gateway.
pub struct Running {
    dir: TempDir,
    /// What it was started with.
    pub config: GatewayConfig,
    gateway: Option<Gateway>,
}

impl Running {
    /// Starts a gateway of empty images with these names and sizes.
    pub fn new(images: &[(&str, u64)]) -> Self {
        Self::with(images, |_| {})
    }

    /// The same with a configuration that `change` has worked on.
    pub fn with(images: &[(&str, u64)], change: impl FnOnce(&mut GatewayConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = images.iter().map(|(name, size)| ExportConfig {
            name: (*name).to_owned(),
            image: image(dir.path(), name, *size),
            read_only: false,
            ..ExportConfig::default()
        });
        let mut config = GatewayConfig {
            control: Some(dir.path().join("control.sock")),
            listen: vec![format!("unix:{}", dir.path().join("nbd.sock").display())],
            exports: exports.collect(),
            ..GatewayConfig::default()
        };
        change(&mut config);
        let gateway = Some(start(&config));
        Self {
            dir,
            config,
            gateway,
        }
    }

    pub fn restart(&mut self, config: &GatewayConfig) {
        self.gateway.take().unwrap().shutdown();
        self.gateway = Some(start(config));
    }

    pub fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().unwrap()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn uri(&self, export: &str) -> String {
        let socket = self.dir().join("nbd.sock");
        format!("nbd+unix:///{export}?socket={}", socket.display())
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.dir().join("control.sock"))
            .await
            .unwrap()
    }

    /// Adds an export, see [`passing`].
    pub async fn add(&self, client: &Client, export: &ExportConfig) -> ExportStatus {
        loop {
            match client.add_export(export).await {
                Err(ControlError::Refused { message, .. }) if passing(&message) => {}
                outcome => return outcome.unwrap(),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Reloads, see [`passing`].
    pub fn reload(&self, config: &GatewayConfig) -> Result<Reloaded, String> {
        loop {
            match self.gateway().reload(Ok(config.clone())) {
                Err(error) if passing(&error) => {}
                outcome => return outcome,
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A child that another test forks holds our locks until it becomes another program.
fn passing(error: &str) -> bool {
    error.contains("in use")
}

fn start(config: &GatewayConfig) -> Gateway {
    loop {
        match Gateway::start(config) {
            Ok(gateway) => return gateway,
            Err(error) if format!("{error:?}").contains("Locked") => {}
            Err(error) if format!("{error:?}").contains("InUse") => {}
            Err(error) => panic!("{error:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An empty image.
pub fn image(dir: &Path, name: &str, size: u64) -> PathBuf {
    let path = dir.join(if name.is_empty() { "default" } else { name });
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    path
}

pub fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

pub fn qemu_io_output(uri: &str, commands: &[&str]) -> Output {
    let mut command = Command::new("qemu-io");
    command.args(["-f", "raw"]);
    for line in commands {
        command.args(["-c", line]);
    }
    let output = command.arg(uri).output();
    output.expect("qemu-io of the package qemu-utils")
}

/// Runs commands that must all work.
pub fn qemu_io(uri: &str, commands: &[&str]) {
    let output = qemu_io_output(uri, commands);
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !text.contains("failed"),
        "{commands:?}: {text}"
    );
}

/// A qemu-io that stays attached.
pub struct Shell {
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
}

impl Shell {
    const PROMPT: &str = "qemu-io> ";

    pub fn open(uri: &str) -> Self {
        // One stream, so that errors come in order.
        let mut child = Command::new("sh")
            .args(["-c", "exec qemu-io -t none -f raw \"$1\" 2>&1", "sh", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("qemu-io of the package qemu-utils");
        let input = child.stdin.take();
        let output = child.stdout.take().unwrap();
        let mut shell = Self {
            child,
            input,
            output,
        };
        shell.until_prompt();
        shell
    }

    /// Gives one command; what it says.
    pub fn ask(&mut self, command: &str) -> String {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.until_prompt()
    }

    fn until_prompt(&mut self) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(Self::PROMPT.as_bytes()) {
            let got = self.output.read(&mut byte).unwrap();
            assert_eq!(got, 1, "qemu-io ended: {}", String::from_utf8_lossy(&text));
            text.push(byte[0]);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Leaves, and waits until it has.
    pub fn end(mut self) {
        self.input.take();
        self.child.wait().unwrap();
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.input.take();
        // It ends with its input; the test must not end before it.
        let _ = self.child.wait();
    }
}
