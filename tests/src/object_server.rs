//! A real S3 server on loopback: moto's, a process of its own that keeps its objects in memory. tests/scripts/setup.sh installs it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::paths;
use crate::process::Process;
use crate::waiting::wait_until;

/// A signature as it looks.
const UNCHECKED: &str = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// A server. Dropping it ends it.
#[derive(Debug)]
pub struct ObjectServer {
    process: Process,
    port: u16,
}

impl ObjectServer {
    /// Starts one; its log is `s3.log` in `dir`.
    pub fn start(dir: &Path) -> Self {
        let program = paths::workspace().join("target/moto/bin/moto_server");
        assert!(
            program.is_file(),
            "{} is missing; tests/scripts/setup.sh installs it",
            program.display()
        );
        let mut command = Command::new(program);
        command
            .args(["-H", "127.0.0.1", "-p", "0"])
            .env("PYTHONUNBUFFERED", "1")
            .current_dir(dir);
        let process = Process::start("s3", dir, command);
        let port = wait_until(
            "the S3 server to listen",
            || {
                let log = process.log();
                let (_, rest) = log.split_once("http://127.0.0.1:")?;
                let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
                // The line may not be complete yet.
                rest.contains('\n').then(|| digits.parse().ok())?
            },
            || process.log_tail(),
        );
        Self { process, port }
    }

    /// The variables that lead a client there.
    pub fn environment(&self) -> Vec<(String, String)> {
        let pairs = [
            (
                "AWS_ENDPOINT_URL",
                format!("http://127.0.0.1:{}", self.port),
            ),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "very-secret".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).into()
    }

    /// Makes a bucket.
    pub fn make_bucket(&self, name: &str) {
        let (head, _) = self.request("PUT", &format!("/{name}"), b"");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }

    /// Paths and sizes of all objects in a bucket, in the order of their names; at most a thousand.
    pub fn objects(&self, bucket: &str) -> Vec<(String, u64)> {
        let (head, body) = self.request("GET", &format!("/{bucket}?list-type=2"), b"");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let body = String::from_utf8_lossy(&body).into_owned();
        let tag = |text: &str, name: &str| {
            let (_, rest) = text.split_once(&format!("<{name}>"))?;
            Some(rest.split_once('<')?.0.to_owned())
        };
        let object = |text: &str| {
            let size = tag(text, "Size")?.parse().ok()?;
            Some((format!("/{bucket}/{}", tag(text, "Key")?), size))
        };
        body.split("<Contents>")
            .skip(1)
            .filter_map(object)
            .collect()
    }

    /// What an object holds.
    pub fn object(&self, path: &str) -> Vec<u8> {
        let (head, body) = self.request("GET", path, b"");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body
    }

    /// Makes an object something else.
    pub fn set_object(&self, path: &str, data: &[u8]) {
        let (head, _) = self.request("PUT", path, data);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }

    /// Removes an object.
    pub fn remove_object(&self, path: &str) {
        let (head, _) = self.request("DELETE", path, b"");
        assert!(head.starts_with("HTTP/1.1 204"), "{head}");
    }

    /// The server stops to answer, or goes on.
    pub fn freeze(&self, frozen: bool) {
        use rustix::process::Signal;
        self.process
            .signal(if frozen { Signal::STOP } else { Signal::CONT });
    }

    /// Head and body of the answer. This server wants to see a signature for an object, and does not check it.
    fn request(&self, method: &str, path: &str, body: &[u8]) -> (String, Vec<u8>) {
        let mut stream =
            TcpStream::connect(("127.0.0.1", self.port)).expect("the S3 server listens");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: {UNCHECKED}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            self.port,
            body.len()
        );
        stream
            .write_all(head.as_bytes())
            .expect("a request can be sent");
        stream.write_all(body).expect("a request can be sent");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer comes");
        let at = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("an answer has a head");
        let head = String::from_utf8_lossy(&answer[..at]).into_owned();
        (head, answer.split_off(at + 4))
    }
}
