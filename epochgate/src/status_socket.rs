//! The socket that answers `epochgate status`: whoever connects gets one JSON object. Knows nothing of what is in it.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};

use crate::exit::{Usage, usage};

/// A socket that answers. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct StatusSocket(PathBuf);

impl StatusSocket {
    /// Answers at `{runtime_dir}/{role}-{vm}.sock` with what `answer` gives.
    ///
    /// # Errors
    /// The same role already runs for this VM; the socket can't be made.
    pub async fn start(
        runtime_dir: &Path,
        role: &str,
        vm: &str,
        answer: impl Fn() -> Vec<u8> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let socket = runtime_dir.join(format!("{role}-{vm}.sock"));
        if UnixStream::connect(&socket).await.is_ok() {
            return Err(Usage(format!(
                "a {role} of \"{vm}\" already runs on this host (it answers at {}); stop it first",
                socket.display()
            ))
            .into());
        }
        let listener = listen(&socket)?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // The asker may be gone; nothing depends on it.
                let _ = stream.write_all(&answer()).await;
            }
        });
        Ok(Self(socket))
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A socket for its owner only, in place of what a process that was killed has left.
pub(crate) fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(socket);
    let listener = UnixListener::bind(socket)
        .with_context(|| format!("the socket {} can't be made", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Makes the runtime directory, for its owner only, if it is missing.
pub(crate) fn prepare_runtime_dir(dir: &Path) -> anyhow::Result<()> {
    prepare_private_dir(dir, "runtime directory", "runtime_dir")
}

/// The same for the directory that `setting` names, which people know as `what`.
pub(crate) fn prepare_private_dir(dir: &Path, what: &str, setting: &str) -> anyhow::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| {
            format!(
                "the {what} {} can't be made; set `{setting}` to one that you may write",
                dir.display()
            )
        })
        .map_err(usage)
}
