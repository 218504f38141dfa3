//! The gateway's control API as a foreign program would speak it: one HTTP request over the control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// `POST path` with a JSON body. Returns the HTTP status and the reply.
pub fn post(socket: &Path, path: &str, body: &Value) -> (u16, Value) {
    try_post(socket, path, body).expect("the gateway answers")
}

/// The same, for a gateway that may be gone.
///
/// # Errors
/// When there is no answer, or none that is JSON over HTTP.
pub fn try_post(socket: &Path, path: &str, body: &Value) -> io::Result<(u16, Value)> {
    let body = body.to_string();
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let parse = || {
        let (head, body) = reply.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).ok()?))
    };
    parse().ok_or_else(|| io::Error::other(format!("this is no answer: {reply}")))
}
