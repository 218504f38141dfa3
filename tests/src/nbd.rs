//! A small NBD client that says exactly what it is told to, also what no client should say. Written from the NBD protocol document
//! alone; it reads simple and structured replies with all their chunks.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than anything takes that is not a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// Request types.
pub const READ: u16 = 0;
/// The only request with data.
pub const WRITE: u16 = 1;
/// Goodbye; there is no reply.
pub const DISC: u16 = 2;
/// Make durable what was answered.
pub const FLUSH: u16 = 3;
/// Give up a range.
pub const TRIM: u16 = 4;
/// Write zeros.
pub const ZEROES: u16 = 6;

/// Command flag: durable before it is answered.
pub const FUA: u16 = 1;
/// Command flag of [`ZEROES`]: keep the space.
pub const NO_HOLE: u16 = 2;

/// Options of the handshake.
pub const OPT_GO: u32 = 7;
/// Ask for structured replies.
pub const OPT_STRUCTURED: u32 = 8;

/// One request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// Request type.
    pub kind: u16,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// Data of a write.
    pub payload: Vec<u8>,
}

impl Request {
    /// A request without data.
    pub fn new(kind: u16, offset: u64, length: u32) -> Self {
        Self {
            kind,
            offset,
            length,
            ..Self::default()
        }
    }

    /// A write.
    pub fn write(offset: u64, payload: Vec<u8>) -> Self {
        Self {
            length: u32::try_from(payload.len()).expect("a write is below 4 GiB"),
            payload,
            ..Self::new(WRITE, offset, 0)
        }
    }

    /// The same with command flags.
    pub fn with(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    /// Its bytes on the wire.
    pub fn bytes(&self, cookie: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(28 + self.payload.len());
        bytes.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        bytes.extend_from_slice(&self.kind.to_be_bytes());
        bytes.extend_from_slice(&cookie.to_be_bytes());
        bytes.extend_from_slice(&self.offset.to_be_bytes());
        bytes.extend_from_slice(&self.length.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// The answer to a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// 0, or an errno.
    pub error: u32,
    /// What a read brought.
    pub data: Vec<u8>,
}

/// A connection in the transmission phase.
#[derive(Debug)]
pub struct Client {
    /// The socket, to send what is no request.
    pub stream: UnixStream,
    cookie: u64,
    /// Reads under way: where they begin and what has come so far.
    reads: HashMap<u64, (u64, Answer)>,
}

/// Connects and takes the greeting.
pub fn connect(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    if &greeting[..16] != b"NBDMAGICIHAVEOPT" {
        return Err(io::Error::other("this is no NBD server"));
    }
    Ok(stream)
}

/// The bytes of an option.
pub fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend_from_slice(&kind.to_be_bytes());
    let length = u32::try_from(data.len()).expect("an option is short");
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// The data of INFO and GO.
pub fn go(export: &str) -> Vec<u8> {
    let length = u32::try_from(export.len()).expect("a name is short");
    let mut data = length.to_be_bytes().to_vec();
    data.extend_from_slice(export.as_bytes());
    data.extend_from_slice(&[0, 0]);
    data
}

/// Kind and data of the next option reply.
pub fn option_reply(stream: &mut UnixStream) -> io::Result<(u32, Vec<u8>)> {
    let mut head = [0; 20];
    stream.read_exact(&mut head)?;
    let kind = u32::from_be_bytes(array(&head[12..16]));
    let mut data = vec![0; u32::from_be_bytes(array(&head[16..20])) as usize];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

/// True when the server has closed the connection; a reset is an end as well.
pub fn at_end(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(count) => count == 0,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        ),
    }
}

impl Client {
    /// Attaches to an export.
    ///
    /// # Errors
    /// When the server refuses or is gone.
    pub fn try_attach(socket: &Path, export: &str, structured: bool) -> io::Result<Self> {
        let mut stream = connect(socket)?;
        stream.write_all(&3u32.to_be_bytes())?;
        if structured {
            stream.write_all(&option(OPT_STRUCTURED, &[]))?;
            let (kind, _) = option_reply(&mut stream)?;
            assert_eq!(kind, 1, "structured replies are refused");
        }
        stream.write_all(&option(OPT_GO, &go(export)))?;
        loop {
            match option_reply(&mut stream)? {
                (1, _) => break,
                (kind, _) if kind >> 31 == 0 => {}
                (_, message) => {
                    return Err(io::Error::other(String::from_utf8_lossy(&message)));
                }
            }
        }
        Ok(Self {
            stream,
            cookie: 0,
            reads: HashMap::new(),
        })
    }

    /// Attaches to an export that is there.
    #[track_caller]
    pub fn attach(socket: &Path, export: &str, structured: bool) -> Self {
        Self::try_attach(socket, export, structured).expect("the export can be attached")
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        let mut answers = self.exchange(std::slice::from_ref(request))?;
        answers
            .pop()
            .ok_or_else(|| io::Error::other("there is no answer"))
    }

    /// Requests in one go, and their answers in the same order. They are sent while answers are read: neither side
    /// waits for the other to drain its buffers.
    ///
    /// # Errors
    /// When the connection ends before all answers have come.
    pub fn exchange(&mut self, requests: &[Request]) -> io::Result<Vec<Answer>> {
        let first = self.cookie + 1;
        let mut bytes = Vec::new();
        for request in requests {
            self.cookie += 1;
            bytes.extend(request.bytes(self.cookie));
            if request.kind == READ {
                let answer = Answer {
                    error: 0,
                    data: vec![0; request.length as usize],
                };
                self.reads.insert(self.cookie, (request.offset, answer));
            }
        }
        let mut to_send = self.stream.try_clone()?;
        std::thread::scope(|scope| {
            // If sending fails the server is gone, and reading says so.
            scope.spawn(move || to_send.write_all(&bytes));
            let mut answers = vec![None; requests.len()];
            for _ in requests {
                let (cookie, answer) = self.receive()?;
                let index = usize::try_from(cookie.wrapping_sub(first)).unwrap_or(usize::MAX);
                let slot = answers
                    .get_mut(index)
                    .ok_or_else(|| io::Error::other("an answer to no request"))?;
                if slot.replace(answer).is_some() {
                    return Err(io::Error::other("a second answer to a request"));
                }
            }
            Ok(answers.into_iter().flatten().collect())
        })
    }

    /// The next whole answer and its cookie.
    ///
    /// # Errors
    /// When the connection ends, or something comes that is no answer.
    pub fn receive(&mut self) -> io::Result<(u64, Answer)> {
        let mut failure = 0;
        loop {
            let magic = u32::from_be_bytes(self.take()?);
            if magic == 0x6744_6698 {
                let error = u32::from_be_bytes(self.take()?);
                let cookie = u64::from_be_bytes(self.take()?);
                let (_, mut answer) = self.reads.remove(&cookie).unwrap_or_default();
                answer.error = error;
                if error == 0 {
                    self.stream.read_exact(&mut answer.data)?;
                }
                return Ok((cookie, answer));
            }
            if magic != 0x668e_33ef {
                return Err(io::Error::other(format!("{magic:#x} begins no reply")));
            }
            let flags = u16::from_be_bytes(self.take()?);
            let kind = u16::from_be_bytes(self.take()?);
            let cookie = u64::from_be_bytes(self.take()?);
            let mut payload = vec![0; u32::from_be_bytes(self.take()?) as usize];
            self.stream.read_exact(&mut payload)?;
            match kind {
                0 => {}
                1 | 2 => self.place(cookie, kind, &payload)?,
                _ if kind >> 15 == 1 && payload.len() >= 6 => {
                    failure = u32::from_be_bytes(array(&payload[..4]));
                }
                _ => return Err(io::Error::other(format!("a chunk of kind {kind}"))),
            }
            if flags & 1 == 1 {
                let (_, mut answer) = self.reads.remove(&cookie).unwrap_or_default();
                answer.error = failure;
                return Ok((cookie, answer));
            }
        }
    }

    /// Puts a chunk of data (kind 1) or a hole (kind 2) where it belongs.
    fn place(&mut self, cookie: u64, kind: u16, payload: &[u8]) -> io::Result<()> {
        let wrong = || io::Error::other("a chunk that does not fit its read");
        let (start, answer) = self.reads.get_mut(&cookie).ok_or_else(wrong)?;
        let (offset, rest) = payload.split_first_chunk::<8>().ok_or_else(wrong)?;
        let at = u64::from_be_bytes(*offset)
            .checked_sub(*start)
            .and_then(|at| usize::try_from(at).ok())
            .ok_or_else(wrong)?;
        let len = if kind == 1 {
            rest.len()
        } else {
            u32::from_be_bytes(*rest.first_chunk::<4>().ok_or_else(wrong)?) as usize
        };
        let end = at.checked_add(len).ok_or_else(wrong)?;
        let target = answer.data.get_mut(at..end).ok_or_else(wrong)?;
        if kind == 1 {
            target.copy_from_slice(rest);
        } else {
            target.fill(0);
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("the slice has that length")
}
