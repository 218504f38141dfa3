//! An export of another NBD server as an image: qemu-nbd with a qcow2, nbdkit, another gateway. A client of its own, with simple replies and
//! many requests on one connection; what is lost when the server restarts is the business of [`super::volume`].

use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::link::{Answer, Link, Message, Reply, Wire};
use super::place::{NbdAddress, NbdPlace};
use super::remote::{End, Life, Limits, Op, Outcome, Remote};
use super::stream::Stream;
use crate::protocol::{
    C_FIXED_NEWSTYLE, C_NO_ZEROES, EXPORT_NAME_PADDING, FIXED_NEWSTYLE, NBD_MAGIC, NO_ZEROES,
    OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_LEN, REQUEST_MAGIC, SIMPLE_REPLY_LEN,
    SIMPLE_REPLY_MAGIC, WireReader, command, info, option, reply, transmission_flag,
};

mod handshake;

use handshake::Export;

/// What every server takes ("Size constraints": 32 MiB), as far as it is of use.
const MOST: usize = 1 << 20;

/// An export of an NBD server.
#[derive(Debug)]
pub(super) struct NbdExport {
    link: Link,
    export: Export,
}

impl NbdExport {
    /// Attaches to the export.
    ///
    /// # Errors
    /// When the server can't be reached, has no such export, or can't make durable what is written.
    pub fn open(place: &NbdPlace, read_only: bool) -> io::Result<Self> {
        let wire = Arc::new(NbdWire {
            place: place.clone(),
            read_only,
            first: OnceLock::new(),
        });
        let link = Link::open(place.to_string(), Arc::clone(&wire) as _, place.patience)?;
        let export = *wire.first.get().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Self { link, export })
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.export.size
    }

    fn offers(&self, flag: u16) -> bool {
        self.export.flags & flag != 0
    }
}

#[derive(Debug)]
struct NbdWire {
    place: NbdPlace,
    read_only: bool,
    /// What the export was when it was opened.
    first: OnceLock<Export>,
}

impl Wire for NbdWire {
    fn connect(&self) -> io::Result<Stream> {
        let mut stream = match &self.place.address {
            NbdAddress::Tcp(host, port) => Stream::tcp(host, *port, false)?,
            NbdAddress::Unix(path) => Stream::unix(path)?,
        };
        let export = handshake::attach(&mut stream, &self.place.export)?;
        let first = *self.first.get_or_init(|| export);
        handshake::check(first, export, self.read_only)?;
        Ok(stream)
    }

    fn receive(
        &self,
        from: &mut dyn Read,
        expected: &dyn Fn(u64) -> usize,
    ) -> io::Result<(u64, Reply)> {
        let mut head = [0; SIMPLE_REPLY_LEN];
        from.read_exact(&mut head)?;
        let mut head = WireReader(&head);
        let (magic, error, cookie) = (head.u32(), head.u32(), head.u64());
        let (Some(SIMPLE_REPLY_MAGIC), Some(error), Some(cookie)) = (magic, error, cookie) else {
            return Err(handshake::garbled("a reply does not begin as replies do"));
        };
        let mut data = Vec::new();
        if error == 0 {
            data = vec![0; expected(cookie)];
            from.read_exact(&mut data)?;
        }
        Ok((cookie, Reply { error, data }))
    }
}

fn request(cookie: u64, kind: u16, offset: u64, len: u32) -> Message {
    let mut head = Vec::with_capacity(REQUEST_LEN);
    head.extend(REQUEST_MAGIC.to_be_bytes());
    head.extend([0, 0]);
    head.extend(kind.to_be_bytes());
    head.extend(cookie.to_be_bytes());
    head.extend(offset.to_be_bytes());
    head.extend(len.to_be_bytes());
    Message::new(head)
}

fn length(len: u64) -> u32 {
    // Whoever asks has cut it: no request is longer.
    u32::try_from(len).unwrap_or(u32::MAX)
}

impl Remote for NbdExport {
    fn link(&self) -> &Link {
        &self.link
    }

    fn message(&self, id: u64, op: &Op) -> Message {
        match op {
            Op::Read { offset, len } => Message {
                expected: *len,
                ..request(id, command::READ, *offset, length(*len as u64))
            },
            Op::Write { offset, data } => Message {
                body: Bytes::clone(data),
                ..request(id, command::WRITE, *offset, length(data.len() as u64))
            },
            Op::Zero { offset, len } => request(id, command::WRITE_ZEROES, *offset, length(*len)),
            Op::Trim { offset, len } => request(id, command::TRIM, *offset, length(*len)),
            Op::Flush => request(id, command::FLUSH, 0, 0),
        }
    }

    fn end(&self, op: &Op, answer: &mut Answer) -> End {
        if answer.reply.error != 0 {
            let error = error_of(answer.reply.error);
            // A server that stops is soon another one.
            return match answer.reply.error {
                SHUTDOWN => End::Again(error),
                _ => End::Failed(error),
            };
        }
        End::Done(Outcome {
            // Whether it is the same server behind another connection there is no telling.
            life: Some(Life {
                connection: answer.connection,
                verifier: 0,
            }),
            durable: false,
            count: match op {
                Op::Write { data, .. } => data.len(),
                _ => 0,
            },
            data: std::mem::take(&mut answer.reply.data),
        })
    }

    fn limits(&self) -> Limits {
        Limits {
            read: MOST,
            write: MOST,
            zero: self.offers(transmission_flag::SEND_WRITE_ZEROES),
            trim: self.offers(transmission_flag::SEND_TRIM),
        }
    }
}

/// "NBD_ESHUTDOWN" ("Error values").
const SHUTDOWN: u32 = 108;

/// The system's error for a number of the wire ("Error values").
fn error_of(number: u32) -> io::Error {
    let code = match number {
        1 => libc::EPERM,
        12 => libc::ENOMEM,
        22 => libc::EINVAL,
        28 => libc::ENOSPC,
        75 => libc::EOVERFLOW,
        95 => libc::EOPNOTSUPP,
        SHUTDOWN => libc::ESHUTDOWN,
        _ => libc::EIO,
    };
    io::Error::from_raw_os_error(code)
}
