//! A QMP connection of the lab's own, for what the host does to the VM: faults of the disk, resets. Knows nothing of the monitor.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A connection that has left negotiation mode.
#[derive(Debug)]
pub struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
}

impl Qmp {
    /// Connects to a socket that QEMU listens on.
    pub async fn connect(path: &Path) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(path)
            .await
            .with_context(|| format!("QMP at {}", path.display()))?;
        let (read, writer) = socket.into_split();
        let mut qmp = Self {
            lines: BufReader::new(read).lines(),
            writer,
        };
        qmp.lines.next_line().await?.context("no greeting")?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Carries out a command and returns its answer. Events are skipped.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        self.writer.write_all(text.as_bytes()).await?;
        loop {
            let line = self
                .lines
                .next_line()
                .await?
                .context("QEMU has closed its QMP connection")?;
            let mut answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(good) = answer.get_mut("return") {
                return Ok(good.take());
            }
        }
    }

    /// From now on no request of the disk comes to an end: it is let through at one byte in some days.
    pub async fn hang(&mut self, disk: &str) -> anyhow::Result<()> {
        let limits = json!({
            "id": format!("/machine/peripheral/{disk}/virtio-backend"), "bps": 1, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        self.execute("block_set_io_throttle", limits)
            .await
            .map(drop)
    }

    /// From now on all requests of the disk fail: a node that fails them is put below the disk's own.
    pub async fn fail(&mut self, disk: &str) -> anyhow::Result<()> {
        let node = format!("disk-{disk}");
        let nodes = self
            .execute("query-named-block-nodes", json!({ "flat": true }))
            .await?;
        let top = nodes
            .as_array()
            .into_iter()
            .flatten()
            .find(|entry| entry["node-name"] == node.as_str());
        let top = top.with_context(|| format!("QEMU has no node {node}"))?;
        let below = nodes.as_array().into_iter().flatten().find(|entry| {
            entry["drv"] == "nbd"
                && entry["file"]
                    .as_str()
                    .is_some_and(|file| file.contains(&format!("/{disk}")))
        });
        let below = below
            .and_then(|entry| entry["node-name"].as_str())
            .with_context(|| format!("no NBD node below {top}"))?
            .to_owned();
        let rules: Vec<Value> = ["read", "write", "flush", "write-zeroes", "discard"]
            .map(|kind| json!({ "event": "none", "iotype": kind, "errno": 5, "once": false, "immediately": true }))
            .into();
        let failing = json!({ "driver": "blkdebug", "node-name": "failing", "image": below, "inject-error": rules });
        self.execute("blockdev-add", failing).await?;
        let again = json!({ "options": [{
            "driver": "raw", "node-name": node, "read-only": false,
            "cache": { "direct": true, "no-flush": false }, "file": "failing",
        }] });
        self.execute("blockdev-reopen", again).await.map(drop)
    }
}
