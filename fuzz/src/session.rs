//! A whole server on a socket: a client with well-formed requests of every kind, in one stream with the handshake and cut anywhere, gets
//! exactly one whole reply to each, whatever comes behind them.
//!
//! Input: three bytes that choose the export, what is negotiated, and the cut; then records, see `Stream::record`.
//!
//! [`run`] has the server on the thread of the fuzzer and without workers: all that the client sends is in the socket before it begins,
//! and all that it answers has room there. That takes no thread and no waiting, so it is many times faster than [`run_with_threads`],
//! where client, connection and workers are threads beside each other, behind a listener, as in life. It can't cut what is sent, so the
//! third byte means nothing there. Of one input in `LARGE` much may be transferred, of the others little, as most of the time would go
//! into copying, and what large requests show is soon seen. Which one is up to a hash: with a byte of the input a fuzzer, which keeps what
//! reaches the most, soon has them all large.

mod disk;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nbd_server::access::Peer;
use nbd_server::agreed::Headers;
use nbd_server::limits::Limits;
use nbd_server::server::{ListenAddress, Server};
use rustix::net::sockopt;
use xxhash_rust::xxh3::xxh3_64;

use disk::{Directory, SIZE, status_step};

use crate::replies::{self, Asked, BLOCK_STATUS, READ};

/// Longer than any input takes: then the server hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that one input may have transferred, both ways together.
const BUDGET: u64 = 2 << 20;
/// The same where all of it has to fit into the buffers of a socket, which the kernel gives 416 KiB, both ways alike.
const BUDGET_ALONE: u64 = 300 << 10;
/// Of so many inputs one has that.
const LARGE: u64 = 8;
/// The same for the others.
const BUDGET_SMALL: u64 = 32 << 10;
/// Room for all that is ever answered there, handshake included.
const ROOM: usize = 512 << 10;
/// What a request may take of such a buffer beyond its data, answer or not.
const OVERHEAD: u64 = 1500;

const WRITE: u16 = 1;
const DISC: u16 = 2;
const RESIZE: u16 = 8;
const FUA: u16 = 1;
const PAYLOAD_LEN: u16 = 1 << 5;
/// Metadata contexts, and the bit of the second byte that selects each.
const CONTEXTS: [(u8, &str); 5] = [
    (6, "base:allocation"),
    (7, "epochgate:held"),
    (2, "x-epochgate:changed-since:1"),
    (3, "x-epochgate:changed-since:unknown"),
    (4, "qemu:dirty-bitmap:2"),
];
/// Ids of the first of them with a point in time.
const FIRST_CHANGED: u32 = 3;

/// One server without threads of its own.
fn server() -> &'static Server {
    static ALONE: OnceLock<Server> = OnceLock::new();
    ALONE.get_or_init(|| {
        let limits = Limits {
            max_workers: 0,
            ..Limits::default()
        };
        Server::new(Arc::new(Directory), limits)
    })
}

/// One server for all inputs, as in life.
fn socket() -> &'static PathBuf {
    static SERVED: OnceLock<(PathBuf, Server, tempfile::TempDir)> = OnceLock::new();
    let (socket, ..) = SERVED.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("nbd.sock");
        let server = Server::new(Arc::new(Directory), Limits::default());
        let address = ListenAddress::Unix(socket.clone());
        server.listen(&address).expect("a socket");
        (socket, server, dir)
    });
    socket
}

/// What the client sends, and what it asks for with it.
struct Stream {
    headers: Headers,
    contexts: Vec<u32>,
    bytes: Vec<u8>,
    asked: HashMap<u64, Asked>,
    /// Bytes that may still be transferred.
    budget: u64,
}

impl Stream {
    fn new(plan: u8, negotiate: u8, budget: u64) -> Self {
        let headers =
            [Headers::Simple, Headers::Structured, Headers::Extended][usize::from(negotiate) % 3];
        let mut stream = Self {
            headers,
            contexts: Vec::new(),
            bytes: vec![0, 0, 0, 3],
            asked: HashMap::new(),
            budget,
        };
        let name = "x".repeat(plan.into());
        match headers {
            Headers::Simple => {}
            Headers::Structured => stream.option(8, &[]),
            Headers::Extended => stream.option(11, &[]),
        }
        let wanted: Vec<&str> = CONTEXTS
            .into_iter()
            .filter(|(bit, _)| negotiate & 1 << bit != 0)
            .map(|(_, name)| name)
            .collect();
        if headers != Headers::Simple && !wanted.is_empty() {
            let mut data = string(&name);
            data.extend(u32::try_from(wanted.len()).unwrap().to_be_bytes());
            wanted
                .iter()
                .for_each(|context| data.extend(string(context)));
            stream.option(10, &data);
            let mut next = FIRST_CHANGED;
            for name in wanted.into_iter().filter(|name| !name.ends_with("unknown")) {
                stream.contexts.push(match name {
                    "base:allocation" => 1,
                    "epochgate:held" => 2,
                    _ => {
                        next += 1;
                        next - 1
                    }
                });
            }
        }
        let mut data = string(&name);
        data.extend([0, 0]);
        stream.option(7, &data);
        stream
    }

    fn option(&mut self, kind: u32, data: &[u8]) {
        self.bytes.extend(b"IHAVEOPT");
        self.bytes.extend(kind.to_be_bytes());
        self.bytes
            .extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        self.bytes.extend(data);
    }

    /// Takes one record off the input: what (1 byte), flags (1), offset (4), length (3). True: another may follow. From a `what` of
    /// 240 on, the rest of the input is sent as it is, and nothing after it.
    fn record(&mut self, input: &mut &[u8]) -> bool {
        let Some((&what, rest)) = input.split_first() else {
            return false;
        };
        if what >= 240 {
            // Something that begins no request, or the beginning of one that never ends.
            let kind = if what.is_multiple_of(2) {
                0x77
            } else {
                self.magic()[0]
            };
            let rest = &rest[..rest.len().min(20)];
            self.bytes.push(kind);
            self.bytes.extend(rest.iter().map(|byte| byte | 0x80));
            return false;
        }
        let Some((&[flags, a, b, c, d, e, f, g], rest)) = rest.split_first_chunk::<8>() else {
            return false;
        };
        *input = rest;
        let offset = u64::from(u32::from_be_bytes([a, b, c, d])) % (SIZE + 64);
        let length = u64::from(u32::from_be_bytes([0, e, f, g])) % (SIZE + 64);
        // All that is known, and some that is not; RESIZE would change what the others may ask for.
        let kind = match u16::from(what % 16) {
            RESIZE => 0x8000 | u16::from(what),
            kind => kind,
        };
        let flags = u16::from(flags) & 0x7f;
        self.request(kind, flags, offset, length, what)
    }

    /// Bytes that the answer to a request may have, beyond [`OVERHEAD`].
    fn longest_answer(&self, kind: u16, offset: u64, length: u64) -> u64 {
        match kind {
            // As many heads of chunks as a read may have holes.
            READ => length + 128 * 40,
            BLOCK_STATUS => {
                let extents = length.div_ceil(status_step(offset)).min(8192);
                extents * 16 * self.contexts.len() as u64
            }
            _ => 0,
        }
    }

    fn magic(&self) -> [u8; 4] {
        match self.headers {
            Headers::Extended => 0x21e4_1c71_u32.to_be_bytes(),
            _ => 0x2560_9513_u32.to_be_bytes(),
        }
    }

    fn request(&mut self, kind: u16, mut flags: u16, offset: u64, length: u64, fill: u8) -> bool {
        let extended = self.headers == Headers::Extended;
        let cost = length + self.longest_answer(kind, offset, length) + OVERHEAD;
        if cost > self.budget {
            return false;
        }
        self.budget -= cost;
        let mut asked = Asked {
            kind,
            flags,
            offset,
            length,
            contexts: self.contexts.clone(),
        };
        let mut payload = Vec::new();
        let mut data = 0;
        let mut on_wire = length;
        if extended && kind == BLOCK_STATUS && flags & PAYLOAD_LEN != 0 {
            payload.extend(length.to_be_bytes());
            asked.contexts.retain(|id| fill & 0x10 << id == 0);
            asked
                .contexts
                .iter()
                .for_each(|id| payload.extend(id.to_be_bytes()));
            on_wire = payload.len() as u64;
        } else if kind == WRITE || (extended && flags & PAYLOAD_LEN != 0) {
            // Now and then a client forgets it; then no data follows.
            if extended && kind == WRITE && fill % 16 != 15 {
                flags |= PAYLOAD_LEN;
            }
            if !extended || flags & PAYLOAD_LEN != 0 {
                data = usize::try_from(length).unwrap();
            }
        }
        if kind == DISC {
            // Whether it may stand here depends on the export, and a goodbye with it is one all the same.
            flags &= !FUA;
        }
        let cookie = self.asked.len() as u64;
        self.bytes.extend(self.magic());
        self.bytes.extend(flags.to_be_bytes());
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(cookie.to_be_bytes());
        self.bytes.extend(offset.to_be_bytes());
        if extended {
            self.bytes.extend(on_wire.to_be_bytes());
        } else {
            self.bytes
                .extend(u32::try_from(on_wire).unwrap().to_be_bytes());
        }
        self.bytes.extend(payload);
        self.bytes.resize(self.bytes.len() + data, fill);
        // A goodbye with flags is refused like any other request.
        if kind == DISC && flags == 0 {
            return false;
        }
        asked.flags = flags;
        self.asked.insert(cookie, asked);
        true
    }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

thread_local! {
    /// What was answered last, so that nobody has to make room for it each time.
    static ANSWERS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs one input on this thread alone.
pub fn run(data: &[u8]) {
    let budget = if xxh3_64(data).is_multiple_of(LARGE) {
        BUDGET_ALONE
    } else {
        BUDGET_SMALL
    };
    ANSWERS.with_borrow_mut(|answers| {
        answers.resize(ROOM, 0);
        converse(data, budget, |bytes, _| alone(&bytes, answers));
    });
}

/// Runs one input with threads.
pub fn run_with_threads(data: &[u8]) {
    converse(data, BUDGET, with_threads);
}

fn converse<Answers: AsRef<[u8]>>(
    data: &[u8],
    budget: u64,
    exchange: impl FnOnce(Vec<u8>, u8) -> Answers,
) {
    let Some((&[plan, negotiate, cut], mut input)) = data.split_first_chunk::<3>() else {
        return;
    };
    let mut stream = Stream::new(plan, negotiate, budget);
    while stream.record(&mut input) {}
    let Stream {
        headers,
        bytes,
        mut asked,
        ..
    } = stream;

    let out = exchange(bytes, cut);
    let transmission = handshake(out.as_ref());
    let left = replies::check(headers, transmission, &mut asked);
    assert!(left.is_empty(), "the beginning of a reply at the end");
    assert!(asked.is_empty(), "not answered: {asked:?}");
}

/// Puts all that the client sends into a socket, has the server work on it, and takes what it has answered.
fn alone<'a>(bytes: &[u8], answers: &'a mut [u8]) -> &'a [u8] {
    let (mut client, socket) = UnixStream::pair().expect("a pair of sockets");
    // As much as the server's end gets for its answers.
    sockopt::set_socket_send_buffer_size(&client, 1 << 20).expect("room in the socket");
    client.set_nonblocking(true).expect("no waiting");
    client.write_all(bytes).expect("room for all requests");
    client
        .shutdown(Shutdown::Write)
        .expect("the end of the stream");
    // A fault ends the connection; what it has answered until then counts.
    let _ = server().serve_connected(socket.into(), Peer::Unknown);
    let mut got = 0;
    loop {
        match client.read(&mut answers[got..]) {
            Ok(0) => break,
            Ok(more) => got += more,
            // What the server did not read makes its close a reset.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("the server has left the connection open: {error}"),
        }
    }
    assert!(got < answers.len(), "more answers than there can be");
    &answers[..got]
}

/// Sends all in two pieces, from another thread than the one that takes the answers.
fn with_threads(bytes: Vec<u8>, cut: u8) -> Vec<u8> {
    let mut client = UnixStream::connect(socket()).expect("the server listens");
    client
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    let mut to_send = client.try_clone().expect("a second handle");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (first, second) = bytes.split_at(bytes.len() * usize::from(cut) / 256);
            // The server may have closed already, after a goodbye or at garbage.
            let _ = to_send.write_all(first);
            let _ = to_send.write_all(second);
            let _ = to_send.shutdown(Shutdown::Write);
        });
        read_all(&mut client)
    })
}

fn read_all(client: &mut UnixStream) -> Vec<u8> {
    let mut out = Vec::new();
    match client.read_to_end(&mut out) {
        Ok(_) => {}
        // What the server did not read makes its close a reset.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server hangs: {error}"),
    }
    out
}

/// Skips the answers of the handshake.
fn handshake(out: &[u8]) -> &[u8] {
    let mut rest = &out[18..];
    loop {
        let (head, data) = rest.split_at(20);
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        assert!(number(12) >> 31 == 0, "option {} is refused", number(8));
        rest = &data[number(16) as usize..];
        if number(8) == 7 && number(12) == 1 {
            return rest;
        }
    }
}
