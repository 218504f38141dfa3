//! One connection to Redis, in the protocol that it speaks (RESP2): requests are arrays of strings, a reply says by its first byte
//! what it is. Several requests may be written before the first reply is read.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A connection on which nothing comes for so long is dead. TCP would go on trying for minutes.
pub(super) const SILENCE: Duration = Duration::from_secs(15);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Longer strings and arrays are not asked for.
const LONGEST: usize = 1 << 20;

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Simple(String),
    Failed(String),
    Integer(i64),
    /// None where there is nothing of that name.
    Bulk(Option<Vec<u8>>),
    Array(Vec<Self>),
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(super) fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT_LIMIT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Sends one request and reads its reply.
    pub(super) fn ask(&mut self, request: &[&str]) -> Result<Reply> {
        self.send(&[request])?;
        self.reply()
    }

    /// Sends requests, in one packet if they fit.
    pub(super) fn send(&mut self, requests: &[&[&str]]) -> Result<()> {
        let mut bytes = Vec::new();
        for request in requests {
            write!(bytes, "*{}\r\n", request.len())?;
            for word in *request {
                write!(bytes, "${}\r\n{word}\r\n", word.len())?;
            }
        }
        self.stream.get_mut().write_all(&bytes)
    }

    /// Reads one reply.
    pub(super) fn reply(&mut self) -> Result<Reply> {
        read_reply(&mut self.stream)
    }
}

fn read_reply(from: &mut impl BufRead) -> Result<Reply> {
    let line = read_line(from)?;
    let (kind, rest) = line.split_at_checked(1).unwrap_or_default();
    Ok(match kind {
        "+" => Reply::Simple(rest.to_owned()),
        "-" => Reply::Failed(rest.to_owned()),
        ":" => Reply::Integer(rest.parse().map_err(|_| unclear(&line))?),
        "$" if rest == "-1" => Reply::Bulk(None),
        "$" => {
            let mut bytes = vec![0; length(rest, &line)? + 2];
            from.read_exact(&mut bytes)?;
            if bytes.split_off(bytes.len() - 2) != b"\r\n" {
                return Err(unclear(&line));
            }
            Reply::Bulk(Some(bytes))
        }
        // A transaction that was not carried out.
        "*" if rest == "-1" => Reply::Bulk(None),
        "*" => {
            let items = 0..length(rest, &line)?;
            Reply::Array(items.map(|_| read_reply(from)).collect::<Result<_>>()?)
        }
        _ => return Err(unclear(&line)),
    })
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    from.take(LONGEST as u64).read_until(b'\n', &mut line)?;
    let Some(text) = line.strip_suffix(b"\r\n") else {
        return Err(Error::new(
            ErrorKind::UnexpectedEof,
            "the server closed the connection",
        ));
    };
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn length(text: &str, line: &str) -> Result<usize> {
    let length = text.parse().map_err(|_| unclear(line))?;
    if length > LONGEST {
        return Err(unclear(line));
    }
    Ok(length)
}

fn unclear(line: &str) -> Error {
    Error::new(
        ErrorKind::InvalidData,
        format!("not a reply of Redis: {line:?}"),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_understood() {
        let text = "+OK\r\n:7\r\n*3\r\n:-1\r\n$3\r\na\r\n\r\n$-1\r\n-ERR no\r\n";
        let mut from = text.as_bytes();
        let mut next = || read_reply(&mut from).unwrap();
        assert_eq!(next(), Reply::Simple("OK".to_owned()));
        assert_eq!(next(), Reply::Integer(7));
        let inner = [
            Reply::Integer(-1),
            Reply::Bulk(Some(b"a\r\n".to_vec())),
            Reply::Bulk(None),
        ];
        assert_eq!(next(), Reply::Array(inner.to_vec()));
        assert_eq!(next(), Reply::Failed("ERR no".to_owned()));
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in [
            "",
            "+OK",
            "?\r\n",
            ":x\r\n",
            "$2\r\nabcd",
            "$99999999\r\n",
            "*2\r\n:1\r\n",
        ] {
            assert!(read_reply(&mut text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
