//! What the NBD tests share: a directory of exports, a server on a socket of its own, and a client that speaks the wire byte by byte.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, missing_docs)]

pub mod extended;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use nbd_server::export::{Cutter, Export, ExportDirectory, ExportInfo, ExportListing, OpenRefused};
use nbd_server::limits::Limits;
use nbd_server::raw_export::RawExport;
use nbd_server::server::{BoundAddress, ListenAddress, Server};

#[derive(Default)]
pub struct Directory {
    exports: HashMap<String, Arc<dyn Export>>,
    pub cutters: Mutex<Vec<Cutter>>,
}

impl Directory {
    fn find(&self, name: &str) -> Result<Arc<dyn Export>, OpenRefused> {
        if name == "forbidden" {
            return Err(OpenRefused::Policy("not for you".into()));
        }
        let export = self.exports.get(name);
        export
            .cloned()
            .ok_or_else(|| OpenRefused::Unknown(format!("there is no export {name}")))
    }
}

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<ExportListing> {
        let listing = |(name, export): (&String, &Arc<dyn Export>)| ExportListing {
            name: name.clone(),
            description: export.info().description,
        };
        self.exports.iter().map(listing).collect()
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, OpenRefused> {
        Ok(self.find(name)?.info())
    }

    fn open(&self, name: &str, cutter: Cutter) -> Result<Arc<dyn Export>, OpenRefused> {
        let export = self.find(name)?;
        self.cutters.lock().unwrap().push(cutter);
        Ok(export)
    }
}

pub struct Served {
    pub server: Server,
    pub directory: Arc<Directory>,
    pub unix: BoundAddress,
    pub dir: tempfile::TempDir,
}

impl Served {
    pub fn new(exports: Vec<(&str, Arc<dyn Export>)>, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = exports
            .into_iter()
            .map(|(name, export)| (name.to_owned(), export))
            .collect();
        let directory = Arc::new(Directory {
            exports,
            cutters: Mutex::default(),
        });
        let server = Server::new(Arc::clone(&directory) as Arc<dyn ExportDirectory>, limits);
        let unix = server
            .listen(&ListenAddress::Unix(dir.path().join("nbd.sock")))
            .unwrap();
        Self {
            server,
            directory,
            unix,
            dir,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn tcp(&self) -> BoundAddress {
        self.server
            .listen(&ListenAddress::tcp("127.0.0.1:0"))
            .unwrap()
    }

    pub fn tcp6(&self) -> BoundAddress {
        self.server.listen(&ListenAddress::tcp("[::1]:0")).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn client(&self, export: &str, structured: bool) -> Client {
        Client::attach(&self.socket(), export, structured)
    }
}

/// An image file of `size` bytes and its export.
pub fn raw_image(dir: &Path, size: u64, read_only: bool) -> (PathBuf, Arc<dyn Export>) {
    let path = dir.join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(size).unwrap();
    let export = RawExport::open(&path, read_only).unwrap();
    (path, Arc::new(export))
}

/// Bytes that no two places share, so that a misplaced block is seen.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Runs a client to its end; one that hangs is killed and fails.
pub fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["--kill-after=5", "120", program])
        .args(arguments)
        .output()
        .unwrap()
}

pub fn run_well(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}\n{out}\n{error}",
        output.status
    );
    out.into_owned()
}

pub struct Client {
    pub stream: UnixStream,
    pub structured: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub cookie: u64,
    pub error: u32,
    pub data: Vec<u8>,
}

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const ZEROES: u16 = 6;

impl Client {
    pub fn connect(socket: &Path) -> UnixStream {
        let mut stream = UnixStream::connect(socket).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        stream
    }

    pub fn attach(socket: &Path, export: &str, structured: bool) -> Self {
        let mut stream = Self::connect(socket);
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        if structured {
            stream.write_all(&option(8, &[])).unwrap();
            assert_eq!(option_reply(&mut stream).0, 1);
        }
        stream.write_all(&option(7, &go_data(export))).unwrap();
        while option_reply(&mut stream).0 != 1 {}
        Self { stream, structured }
    }

    pub fn send(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) {
        self.stream
            .write_all(&request(kind, flags, cookie, offset, length))
            .unwrap();
    }

    /// Receives one reply; `data_len` says for which READ cookies how much data comes.
    pub fn receive(&mut self, data_len: impl Fn(u64) -> usize) -> Answer {
        let magic = u32::from_be_bytes(self.take());
        if magic == 0x6744_6698 {
            let error = u32::from_be_bytes(self.take());
            let cookie = u64::from_be_bytes(self.take());
            let len = if error == 0 && !self.structured {
                data_len(cookie)
            } else {
                0
            };
            return Answer {
                cookie,
                error,
                data: self.take_vec(len),
            };
        }
        assert_eq!(magic, 0x668e_33ef);
        let [_, done, kind_high, kind] = self.take::<4>();
        assert_eq!(done, 1, "the last chunk");
        let cookie = u64::from_be_bytes(self.take());
        let length = u32::from_be_bytes(self.take());
        let payload = self.take_vec(length as usize);
        match (kind_high, kind) {
            (0, 0) => Answer {
                cookie,
                error: 0,
                data: Vec::new(),
            },
            (0, 1) => Answer {
                cookie,
                error: 0,
                data: payload[8..].to_vec(),
            },
            (0x80, 1) => {
                let error = u32::from_be_bytes(payload[..4].try_into().unwrap());
                Answer {
                    cookie,
                    error,
                    data: Vec::new(),
                }
            }
            other => panic!("an unexpected chunk {other:?}"),
        }
    }

    /// One request after another.
    pub fn ask(&mut self, kind: u16, offset: u64, length: u32, payload: &[u8]) -> Answer {
        self.send(kind, 0, 99, offset, length);
        self.stream.write_all(payload).unwrap();
        let answer = self.receive(|_| if kind == READ { length as usize } else { 0 });
        assert_eq!(answer.cookie, 99);
        answer
    }

    /// True when the server has closed the connection and nothing more comes.
    pub fn at_end(&mut self) -> bool {
        at_end(&mut self.stream)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn take_vec(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}

/// Waits for the end of the stream; a reset is one as well.
pub fn at_end(stream: &mut impl Read) -> bool {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).is_err() || rest.is_empty()
}

pub fn request(kind: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

pub fn go_data(name: &str) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(&[0, 0]);
    data
}

/// Type and data of one option reply.
pub fn option_reply(stream: &mut UnixStream) -> (u32, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
    let mut data = vec![0; u32::from_be_bytes(head[16..20].try_into().unwrap()) as usize];
    stream.read_exact(&mut data).unwrap();
    (kind, data)
}
