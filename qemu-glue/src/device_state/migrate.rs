//! Device state by QMP `migrate`, from one unix socket of ours after the other.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use qapi::qmp;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;

use super::{DeviceState, DeviceStream, STREAM_LIMIT, set_capabilities, unix_uri};
use crate::error::{Error, Result};
use crate::qmp::{Batch, Qmp, Reply};

/// First size of the buffer for a stream.
const STREAM_USUAL: usize = 512 << 10;

/// Device state by QMP `migrate` to a unix socket of ours.
#[derive(Debug)]
pub(crate) struct MigrateStream {
    listener: UnixListener,
    path: PathBuf,
    usual: usize,
    /// The listener may still hold a connection of a save that failed, which the next save would take for its own.
    stale: bool,
}

impl MigrateStream {
    /// Listens at `path`, a new socket that is removed with this value, and prepares QEMU.
    pub(crate) async fn prepare(qmp: &Qmp, path: &Path) -> Result<Self> {
        let listener =
            bind_private(path).map_err(Error::file("listen for the device state at", path))?;
        let stream = MigrateStream {
            listener,
            path: path.to_owned(),
            usual: STREAM_USUAL,
            stale: false,
        };
        set_capabilities(qmp).await?;
        // QEMU would otherwise hold itself to 128 MiB/s.
        let parameters = qmp::MigrateSetParameters {
            max_bandwidth: Some(100 << 30),
            ..Default::default()
        };
        qmp.execute(&qmp::migrate_set_parameters(parameters))
            .await?;
        Ok(stream)
    }
}

impl Drop for MigrateStream {
    fn drop(&mut self) {
        // A runtime directory that was already removed is fine.
        let _ = fs::remove_file(&self.path);
    }
}

impl DeviceState for MigrateStream {
    /// The answer to `migrate`, until it is there.
    type Begun = Option<Reply<qmp::migrate>>;

    fn begin(&mut self, qmp: &Qmp, batch: &mut Batch) -> Result<Self::Begun> {
        if self.stale {
            // Closing the old one closes whatever is in its queue. If its path can't be removed, bind says so.
            let _ = fs::remove_file(&self.path);
            self.listener = bind_private(&self.path)
                .map_err(Error::file("listen for the device state at", &self.path))?;
            self.stale = false;
        }
        qmp.forget_migration();
        let uri = Some(unix_uri(&self.path)?);
        let migrate = qmp::migrate {
            channels: None,
            detach: None,
            resume: None,
            uri,
        };
        batch.add(&migrate).map(Some)
    }

    async fn finish(&mut self, qmp: &Qmp, begun: &mut Self::Begun) -> Result<DeviceStream> {
        answered(begun).await?;
        self.stale = true;
        let received = receive(&self.listener, self.usual);
        // A migration that fails may never connect; one that completes always has.
        tokio::pin!(received);
        let stream = tokio::select! {
            biased;
            stream = &mut received => {
                let stream = stream?;
                qmp.migration_end().await?;
                stream
            }
            ended = qmp.migration_end() => {
                ended?;
                received.await?
            }
        };
        self.stale = false;
        self.usual = self.usual.max(stream.len().next_multiple_of(4096));
        Ok(DeviceStream::whole(stream))
    }

    async fn abandon(&mut self, qmp: &Qmp, mut begun: Self::Begun) {
        if answered(&mut begun).await.is_err() {
            return;
        }
        self.stale = true;
        // A connection that is dropped makes QEMU give up.
        let mut listening = true;
        loop {
            tokio::select! {
                biased;
                connection = self.listener.accept(), if listening => listening = connection.is_ok(),
                _ = qmp.migration_end() => break,
            }
        }
    }
}

/// Accepts one connection and reads it to its end.
async fn receive(listener: &UnixListener, usual: usize) -> Result<Vec<u8>> {
    let lost = |e: io::Error| Error::DeviceState {
        problem: format!("the stream from QEMU broke: {e}"),
    };
    let (socket, _) = listener.accept().await.map_err(lost)?;
    let mut stream = Vec::with_capacity(usual);
    socket
        .take(STREAM_LIMIT)
        .read_to_end(&mut stream)
        .await
        .map_err(lost)?;
    if stream.len() as u64 == STREAM_LIMIT {
        return Err(Error::DeviceState {
            problem: format!("it is larger than {} MiB", STREAM_LIMIT >> 20),
        });
    }
    Ok(stream)
}

/// Waits for QEMU's answer to `migrate`, if it is still due.
async fn answered(begun: &mut Option<Reply<qmp::migrate>>) -> Result<()> {
    if let Some(reply) = begun {
        let answer = reply.answer().await;
        *begun = None;
        answer?;
    }
    Ok(())
}

pub(crate) fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
