//! The few lines of HTTP that the lab's clients speak: one request for each connection, as the guest's application has it.

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Bytes, with the head.
    pub bytes: u64,
}

/// Gets a path and throws its content away.
pub async fn get(address: &str, path: &str) -> anyhow::Result<Answer> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    let mut bytes = 0;
    loop {
        let got = socket.read(&mut buffer).await?;
        if got == 0 {
            break;
        }
        if head.len() < 64 {
            head.extend_from_slice(buffer.get(..got.min(64)).unwrap_or_default());
        }
        bytes += got as u64;
    }
    let head = String::from_utf8_lossy(&head);
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .context("no answer")?;
    Ok(Answer { status, bytes })
}
