//! The numbers and fixed layouts of the NBD wire, each with the section of the NBD protocol document (proto.md) that sets it.
//! Values and byte order only: no state, no I/O. All integers are big-endian.

use crate::agreed::{Agreed, Headers};
use crate::export::{ExportInfo, IoError};

/// "NBDMAGIC", first in the greeting ("Newstyle negotiation").
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT", second in the greeting and first in every option ("Newstyle negotiation").
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First in every option reply ("Fixed newstyle negotiation").
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First in every request ("Request message").
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First in an extended request ("Request message" of the extension EXTENDED_HEADERS).
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// First in a simple reply ("Simple reply message").
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First in a chunk of a structured reply ("Structured reply chunk message").
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// First in a chunk of an extended reply ("Extended reply chunk message" of the extension EXTENDED_HEADERS).
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Bytes of the greeting: two magics and the handshake flags.
pub const GREETING_LEN: usize = 18;
/// Bytes before an option's data: magic, option, length.
pub const OPTION_HEADER_LEN: usize = 16;
/// Bytes before an option reply's data: magic, option, reply type, length.
pub const OPTION_REPLY_HEADER_LEN: usize = 20;
/// Bytes of a request without its payload: magic, flags, type, cookie, offset, length.
pub const REQUEST_LEN: usize = 28;
/// Bytes of an extended request without its payload: as above, with a length of 64 bits.
pub const EXTENDED_REQUEST_LEN: usize = 32;
/// Bytes of a simple reply without data: magic, error, cookie.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes before a chunk's payload: magic, flags, type, cookie, length.
pub const CHUNK_HEADER_LEN: usize = 20;
/// Bytes before the payload of a chunk of an extended reply: magic, flags, type, cookie, offset, length.
pub const EXTENDED_CHUNK_HEADER_LEN: usize = 32;
/// Bytes of the offset that opens the payload of a data chunk.
pub const CHUNK_OFFSET_LEN: usize = 8;

/// "Strings SHOULD be no longer than 4096 bytes" ("Values", "Strings").
pub const MAX_STRING: usize = 4096;
/// The largest READ or WRITE that is served, as advertised ("Size constraints"): 32 MiB is what clients assume without
/// an advertisement, and it bounds what one request makes the server hold.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Extents in one chunk of a BLOCK_STATUS reply. The document allows 2^20; this bounds what one request makes the server hold
/// and look up ("NBD_REPLY_TYPE_BLOCK_STATUS").
pub const MAX_STATUS_EXTENTS: usize = 8192;
/// Zeros after the export's data for clients without [`C_NO_ZEROES`] ("NBD_OPT_EXPORT_NAME").
pub const EXPORT_NAME_PADDING: usize = 124;

/// Handshake flag of the server ("Handshake flags"): unknown options are answered.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of the server: the padding may be left out.
pub const NO_ZEROES: u16 = 1 << 1;
/// Client flag ("Client flags"), the answer to [`FIXED_NEWSTYLE`].
pub const C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Client flag, the answer to [`NO_ZEROES`].
pub const C_NO_ZEROES: u32 = 1 << 1;

/// Option types ("Option types").
pub mod option {
    /// Attach to the export whose name is the data; there is no reply, and no error but closing.
    pub const EXPORT_NAME: u32 = 1;
    /// End the session.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Begin TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and attach to it.
    pub const GO: u32 = 7;
    /// Answer reads in structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Select metadata contexts of an export.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use extended requests and replies.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Option reply types ("Option reply types").
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of the list.
    pub const SERVER: u32 = 2;
    /// One piece of information on an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known.
    pub const ERR_UNSUP: u32 = (1 << 31) | 1;
    /// Not allowed here and now.
    pub const ERR_POLICY: u32 = (1 << 31) | 2;
    /// The option's data is malformed.
    pub const ERR_INVALID: u32 = (1 << 31) | 3;
    /// TLS has to be started before.
    pub const ERR_TLS_REQD: u32 = (1 << 31) | 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = (1 << 31) | 6;
    /// The server stops.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) | 7;
    /// The option's data is too long.
    pub const ERR_TOO_BIG: u32 = (1 << 31) | 9;
    /// Extended headers are agreed on, and there is no way back.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) | 10;
}

/// Information types in NBD_REP_INFO ("NBD_REP_INFO").
pub mod info {
    /// Size and transmission flags; always sent.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A line for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags ("Transmission flags").
pub mod transmission_flag {
    /// Must be set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// The export is read-only.
    pub const READ_ONLY: u16 = 1 << 1;
    /// NBD_CMD_FLUSH works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// NBD_CMD_FLAG_FUA works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The disk seeks.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// NBD_CMD_TRIM works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// NBD_CMD_WRITE_ZEROES works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// NBD_CMD_FLAG_DF works.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one cache.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// NBD_CMD_RESIZE works (extension RESIZE).
    pub const SEND_RESIZE: u16 = 1 << 9;
    /// NBD_CMD_CACHE works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// NBD_CMD_FLAG_FAST_ZERO works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// NBD_CMD_BLOCK_STATUS takes a payload that names contexts (extension EXTENDED_HEADERS).
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Request types ("Request types").
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; among compact requests the only one with a payload.
    pub const WRITE: u16 = 1;
    /// Disconnect; there is no reply.
    pub const DISC: u16 = 2;
    /// Make what was answered durable.
    pub const FLUSH: u16 = 3;
    /// The content is no longer needed.
    pub const TRIM: u16 = 4;
    /// The content will be needed soon.
    pub const CACHE: u16 = 5;
    /// Write zeros.
    pub const WRITE_ZEROES: u16 = 6;
    /// Describe a range in the terms of the selected metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
    /// Change the size of the disk (extension RESIZE).
    pub const RESIZE: u16 = 8;
}

/// Command flags ("Command flags").
pub mod command_flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1 << 0;
    /// WRITE_ZEROES must not make a hole.
    pub const NO_HOLE: u16 = 1 << 1;
    /// READ must be answered in one chunk.
    pub const DF: u16 = 1 << 2;
    /// BLOCK_STATUS must be answered with one extent per context.
    pub const REQ_ONE: u16 = 1 << 3;
    /// WRITE_ZEROES must fail rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload behind the request (extension EXTENDED_HEADERS).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Structured reply flag: the last chunk ("Structured reply flags").
pub const CHUNK_FLAG_DONE: u16 = 1 << 0;

/// Structured reply types ("Structured reply types").
pub mod chunk {
    /// Nothing to say.
    pub const NONE: u16 = 0;
    /// Data that was read.
    pub const OFFSET_DATA: u16 = 1;
    /// A range that reads as zeros.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of one metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// The same in 64 bits, with extended headers.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The request failed.
    pub const ERROR: u16 = (1 << 15) | 1;
    /// The request failed at one place.
    pub const ERROR_OFFSET: u16 = (1 << 15) | 2;
}

/// Status flags of `base:allocation` ("`base:allocation` metadata context").
pub mod state {
    /// Nothing is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// It reads as zeros.
    pub const ZERO: u32 = 1 << 1;
}

/// Status flag of `epochgate:held`: held in an epoch, not yet in the image.
pub const STATE_HELD: u32 = 1 << 0;

/// Status flag of the contexts with a point in time: changed since then. `qemu:dirty-bitmap:` calls the same bit dirty.
pub const STATE_CHANGED: u32 = 1 << 0;

/// The number that carries `error` on the wire ("Error values").
pub fn error_number(error: IoError) -> u32 {
    match error {
        IoError::Perm => 1,
        IoError::Io => 5,
        IoError::NoMem => 12,
        IoError::Inval => 22,
        IoError::NoSpace => 28,
        IoError::Overflow => 75,
        IoError::NotSup => 95,
        IoError::Shutdown => 108,
    }
}

/// The transmission flags of an export. What depends on the form of replies is offered only where that was agreed on ("NBD_FLAG_SEND_DF",
/// "NBD_FLAG_BLOCK_STATUS_PAYLOAD").
pub fn transmission_flags(info: &ExportInfo, agreed: &Agreed) -> u16 {
    use transmission_flag as flag;
    let writable = !info.read_only;
    [
        (true, flag::HAS_FLAGS),
        (info.read_only, flag::READ_ONLY),
        (info.can_flush, flag::SEND_FLUSH),
        (writable && info.can_fua, flag::SEND_FUA),
        (info.rotational, flag::ROTATIONAL),
        (writable && info.can_trim, flag::SEND_TRIM),
        (writable && info.can_zeroes, flag::SEND_WRITE_ZEROES),
        (agreed.headers.chunked(), flag::SEND_DF),
        (info.multi_conn, flag::CAN_MULTI_CONN),
        (writable && info.can_resize, flag::SEND_RESIZE),
        (info.can_cache, flag::SEND_CACHE),
        (
            writable && info.can_zeroes && info.can_fast_zero,
            flag::SEND_FAST_ZERO,
        ),
        (
            agreed.headers == Headers::Extended && !agreed.contexts.is_empty(),
            flag::BLOCK_STATUS_PAYLOAD,
        ),
    ]
    .iter()
    .filter(|(set, _)| *set)
    .fold(0, |flags, (_, flag)| flags | flag)
}

/// Reads big-endian integers off the front of a slice; `None` when it is too short.
#[derive(Clone, Debug)]
pub struct WireReader<'a>(pub &'a [u8]);

impl<'a> WireReader<'a> {
    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_export_advertises_nothing_that_changes_it() {
        let info = ExportInfo {
            read_only: true,
            ..ExportInfo::full(1)
        };
        let flags = transmission_flags(&info, &Agreed::default());
        assert_eq!(
            flags,
            transmission_flag::HAS_FLAGS
                | transmission_flag::READ_ONLY
                | transmission_flag::SEND_FLUSH
                | transmission_flag::CAN_MULTI_CONN
                | transmission_flag::SEND_CACHE
        );
    }

    #[test]
    fn a_reader_that_is_too_short_takes_nothing() {
        let mut reader = WireReader(&[1, 2, 3]);
        assert_eq!(reader.u32(), None);
        assert_eq!(reader.u16(), Some(0x0102));
        assert_eq!(reader.bytes(2), None);
        assert_eq!(reader.bytes(1), Some(&[3][..]));
    }
}
