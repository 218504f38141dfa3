//! The gateway's control API as a foreign program would speak it: one HTTP request over the control socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

/// `POST path` with a JSON body. Returns the HTTP status and the reply.
pub fn post(socket: &Path, path: &str, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let mut stream = UnixStream::connect(socket).expect("the gateway answers");
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("a request can be sent");
    let mut reply = String::new();
    stream
        .read_to_string(&mut reply)
        .expect("the gateway replies");
    let (head, body) = reply.split_once("\r\n\r\n").expect("an HTTP reply");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .expect("an HTTP status");
    (
        status,
        serde_json::from_str(body).unwrap_or_else(|_| panic!("not JSON: {body}")),
    )
}
