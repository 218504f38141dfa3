//! Remote procedure calls as NFS uses them (RFC 5531): a call as bytes, a reply from bytes, records on a stream. The types of NFS, MOUNT and
//! the portmapper are those of the crate nfs3_types; nothing here knows what they mean.

use std::io::{self, Cursor, Read, Write};
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use nfs3_types::nfs3::nfsstat3;
use nfs3_types::rpc::{
    RPC_VERSION_2, accept_stat_data, auth_unix, call_body, msg_body, opaque_auth, reply_body,
    rpc_msg,
};
use nfs3_types::xdr_codec::{Opaque, Pack, Unpack};

use super::super::link::Message;
use super::super::stream::Stream;

/// Longest reply that is taken: the largest read, and what comes with it.
const MOST: usize = (1 << 20) + (64 << 10);
/// The last fragment of a record.
const LAST: u32 = 1 << 31;

/// A procedure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Procedure {
    pub program: u32,
    pub version: u32,
    pub number: u32,
}

impl Procedure {
    /// One of NFS version 3.
    pub const fn nfs(number: nfs3_types::nfs3::NFS_PROGRAM) -> Self {
        Self {
            program: nfs3_types::nfs3::PROGRAM,
            version: nfs3_types::nfs3::VERSION,
            number: number as u32,
        }
    }
}

/// Why a call did not do what it should.
#[derive(Debug)]
pub(super) enum Refused {
    /// NFS says no.
    Status(nfsstat3),
    /// There was no answer, or none that makes sense.
    Io(io::Error),
}

impl Refused {
    /// Whether it may be otherwise later: the server is busy, or has lost an export that it had.
    pub fn passes(&self) -> bool {
        use nfsstat3::{
            NFS3ERR_ACCES, NFS3ERR_BADHANDLE, NFS3ERR_JUKEBOX, NFS3ERR_PERM, NFS3ERR_ROFS,
            NFS3ERR_SERVERFAULT, NFS3ERR_STALE,
        };
        let passing = [
            NFS3ERR_JUKEBOX,
            NFS3ERR_STALE,
            NFS3ERR_BADHANDLE,
            NFS3ERR_SERVERFAULT,
            NFS3ERR_ACCES,
            NFS3ERR_PERM,
            NFS3ERR_ROFS,
        ];
        matches!(self, Self::Status(status) if passing.contains(status))
    }

    /// NFS says this.
    pub fn is(&self, status: nfsstat3) -> bool {
        matches!(self, Self::Status(said) if *said == status)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        let status = match refused {
            Refused::Io(error) => return error,
            Refused::Status(status) => status,
        };
        match status {
            nfsstat3::NFS3ERR_STALE | nfsstat3::NFS3ERR_BADHANDLE => Self::other(
                "the server does not know the file any more (stale); has it lost the export?",
            ),
            nfsstat3::NFS3ERR_JUKEBOX => Self::other("the server is busy"),
            nfsstat3::NFS3ERR_SERVERFAULT => Self::other("the server failed"),
            // The numbers of the protocol are those of Unix, up to STALE.
            status if (status as i32) < 100 => Self::from_raw_os_error(match status {
                nfsstat3::NFS3ERR_DQUOT => libc::EDQUOT,
                nfsstat3::NFS3ERR_NOTEMPTY => libc::ENOTEMPTY,
                nfsstat3::NFS3ERR_NAMETOOLONG => libc::ENAMETOOLONG,
                nfsstat3::NFS3ERR_REMOTE => libc::EREMOTE,
                other => other as i32,
            }),
            nfsstat3::NFS3ERR_NOTSUPP => Self::from_raw_os_error(libc::EOPNOTSUPP),
            other => Self::other(format!("the server says {other}")),
        }
    }
}

/// Who asks, for the server.
pub(super) fn credential(uid: Option<u32>, gid: Option<u32>) -> opaque_auth<'static> {
    let name = rustix::system::uname();
    let name = name.nodename().to_bytes().to_vec();
    opaque_auth::auth_unix(&auth_unix {
        stamp: 0,
        machinename: Opaque::owned(name),
        uid: uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        gid: gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        gids: Vec::new(),
    })
}

/// A call as a message. `body` follows the arguments, whose last field says how long it is and is there as 0.
pub(super) fn call(
    xid: u32,
    procedure: Procedure,
    credential: &opaque_auth<'static>,
    args: &impl Pack,
    body: Bytes,
) -> Message {
    let body_call = call_body {
        rpcvers: RPC_VERSION_2,
        prog: procedure.program,
        vers: procedure.version,
        proc: procedure.number,
        cred: credential.borrow(),
        verf: opaque_auth::default(),
    };
    let header = rpc_msg {
        xid,
        body: msg_body::CALL(body_call),
    };
    let mut head = vec![0; 4];
    // To write into memory does not fail, and nothing that we send is too long for its field.
    let packed = header.pack(&mut head).and_then(|_| args.pack(&mut head));
    debug_assert!(packed.is_ok());
    let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body_len > 0
        && let Some(field) = head.last_chunk_mut::<4>()
    {
        *field = body_len.to_be_bytes();
    }
    let padding = body.len().next_multiple_of(4) - body.len();
    let total = head.len() - 4 + body.len() + padding;
    let mark = LAST | u32::try_from(total).unwrap_or(u32::MAX);
    if let Some(field) = head.first_chunk_mut::<4>() {
        *field = mark.to_be_bytes();
    }
    Message {
        body,
        padding,
        ..Message::new(head)
    }
}

/// Reads a record: a whole reply.
pub(super) fn record(from: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut record = Vec::new();
    loop {
        let mut mark = [0; 4];
        from.read_exact(&mut mark)?;
        let mark = u32::from_be_bytes(mark);
        let len = usize::try_from(mark & !LAST).unwrap_or(usize::MAX);
        let start = record.len();
        if len > MOST - start.min(MOST) {
            return Err(garbled("a reply is too long"));
        }
        record.resize(start + len, 0);
        from.read_exact(record.get_mut(start..).unwrap_or_default())?;
        if mark & LAST != 0 {
            return Ok(record);
        }
    }
}

/// The number that a reply is about.
pub(super) fn xid_of(record: &[u8]) -> io::Result<u32> {
    let xid = record.first_chunk::<4>();
    xid.map(|xid| u32::from_be_bytes(*xid))
        .ok_or_else(|| garbled("a reply is too short"))
}

/// What a procedure returned.
pub(super) fn result<R: Unpack>(record: &[u8]) -> io::Result<R> {
    let mut cursor = Cursor::new(record);
    let (message, _) = rpc_msg::unpack(&mut cursor).map_err(|e| garbled(&e.to_string()))?;
    let accepted = match message.body {
        msg_body::REPLY(reply_body::MSG_ACCEPTED(accepted)) => accepted,
        msg_body::REPLY(reply_body::MSG_DENIED(denied)) => {
            return Err(io::Error::other(format!(
                "the server does not take our calls: {denied:?}; uid= and gid= in the URL say who we are"
            )));
        }
        msg_body::CALL(_) => return Err(garbled("it calls us")),
    };
    match accepted.reply_data {
        accept_stat_data::SUCCESS => {}
        other => {
            return Err(io::Error::other(format!(
                "the server does not offer what is needed (NFS version 3 over TCP): {other:?}"
            )));
        }
    }
    let (result, _) = R::unpack(&mut cursor).map_err(|e| garbled(&e.to_string()))?;
    Ok(result)
}

/// Asks on a connection that nothing else uses, and waits.
pub(super) fn ask<R: Unpack>(
    stream: &mut Stream,
    procedure: Procedure,
    credential: &opaque_auth<'static>,
    args: &impl Pack,
) -> io::Result<R> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let xid = NEXT.fetch_add(1, Ordering::Relaxed);
    let message = call(xid, procedure, credential, args, Bytes::new());
    stream.write_all(&message.head)?;
    let record = record(stream)?;
    if xid_of(&record)? != xid {
        return Err(garbled("a reply belongs to no call"));
    }
    result(&record)
}

/// An error about a peer that does not speak as agreed.
pub(super) fn garbled(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the server does not keep to the NFS protocol: {what}"),
    )
}
