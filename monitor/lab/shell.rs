//! The shell of the guest at its second serial line. It is part of the experiment; the monitor sees nothing of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

/// The lab's end of the line.
#[derive(Debug)]
pub struct Shell {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    next: u64,
}

impl Shell {
    /// Connects to the socket behind the serial line, and waits until the guest's shell is there.
    pub async fn open(path: &Path, patience: Duration) -> anyhow::Result<Self> {
        let socket = UnixStream::connect(path)
            .await
            .with_context(|| format!("no serial line at {}", path.display()))?;
        let (read, writer) = socket.into_split();
        let mut shell = Self {
            lines: BufReader::new(read).lines(),
            writer,
            next: 1,
        };
        let deadline = Instant::now() + patience;
        loop {
            // What comes before the guest has opened its line is lost.
            shell.writer.write_all(b"0 :\n").await?;
            match shell.wait_for("done 0 0", Duration::from_secs(1)).await {
                Ok(()) => return Ok(shell),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("the guest has not started"));
                }
                Err(_) => {}
            }
        }
    }

    /// Has the guest begin a line, and waits until it says so. What the line does may take effect at once.
    pub async fn begin(&mut self, line: &str, patience: Duration) -> anyhow::Result<()> {
        let id = self.next;
        self.next += 1;
        self.writer
            .write_all(format!("{id} {line}\n").as_bytes())
            .await?;
        self.wait_for(&format!("begun {id}"), patience)
            .await
            .with_context(|| format!("the guest did not begin: {line}"))
    }

    /// The same, and waits until it is done.
    pub async fn run(&mut self, line: &str, patience: Duration) -> anyhow::Result<()> {
        self.begin(line, patience).await?;
        let done = format!("done {} 0", self.next - 1);
        self.wait_for(&done, patience)
            .await
            .with_context(|| format!("the guest did not do: {line}"))
    }

    async fn wait_for(&mut self, words: &str, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match timeout_at(deadline, self.lines.next_line()).await {
                Ok(Ok(Some(line))) if line.trim().ends_with(words) => return Ok(()),
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => bail!("the serial line is closed"),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => bail!("no `{words}` within {} s", patience.as_secs()),
            }
        }
    }
}
