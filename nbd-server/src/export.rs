//! What an NBD connection may ask of a disk, and how it finds one.
//!
//! This module knows nothing of sockets, of the wire's layout, or of how a disk keeps its data: it is the seam between the
//! protocol half of this crate and raw files ([`crate::raw_export`]) or the disks of a group.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use epoch_log::Epoch;

use crate::metrics::Meter;

/// Why a disk did not do what was asked, in the terms that NBD can carry (NBD protocol, "Error values").
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The export is read-only, or this attachment may not write.
    #[error("the operation is not permitted on this export")]
    Perm,
    /// The storage failed.
    #[error("the storage failed")]
    Io,
    /// There is no memory for the request right now.
    #[error("there is not enough memory for the request")]
    NoMem,
    /// The request is malformed, or reads beyond the end of the disk.
    #[error("the request is not valid")]
    Inval,
    /// The storage is full, or the write reaches beyond the end of the disk.
    #[error("there is no space left")]
    NoSpace,
    /// The request is larger than an answer can be.
    #[error("the request is too large")]
    Overflow,
    /// The operation is not supported, or a fast zero is not fast here.
    #[error("the operation is not supported")]
    NotSup,
    /// The server stops, or this attachment is fenced.
    #[error("the export is shutting down")]
    Shutdown,
}

impl From<&std::io::Error> for IoError {
    fn from(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => Self::Perm,
            Some(libc::ENOMEM) => Self::NoMem,
            Some(libc::EINVAL) => Self::Inval,
            // "It also SHOULD map the EDQUOT and EFBIG errors to NBD_ENOSPC."
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            Some(libc::EOVERFLOW) => Self::Overflow,
            Some(libc::EOPNOTSUPP) => Self::NotSup,
            Some(libc::ESHUTDOWN) => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

impl From<std::io::Error> for IoError {
    fn from(error: std::io::Error) -> Self {
        Self::from(&error)
    }
}

/// What a client is told about an export when it attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size of the disk in bytes, more than 0. For one connection it changes only by a [`Export::resize`] of its own; an export that has
    /// shrunk refuses by itself what lies beyond its end.
    pub size: u64,
    /// Writes are refused by the connection with [`IoError::Perm`] before they reach the export.
    pub read_only: bool,
    /// One line for people, at most 4096 bytes; longer ones are cut. May be empty.
    pub description: String,
    /// The disk seeks: clients should order their requests.
    pub rotational: bool,
    /// A flush on one connection covers what was answered on all others, so that a client may use several.
    pub multi_conn: bool,
    /// `fua` may be true in requests.
    pub can_fua: bool,
    /// [`Export::flush`] works.
    pub can_flush: bool,
    /// [`Export::trim`] works.
    pub can_trim: bool,
    /// [`Export::write_zeroes`] works.
    pub can_zeroes: bool,
    /// `fast` may be true in [`Export::write_zeroes`].
    pub can_fast_zero: bool,
    /// [`Export::cache`] works.
    pub can_cache: bool,
    /// [`Export::resize`] works.
    pub can_resize: bool,
    /// What requests have to be aligned to, and how large they may be.
    pub block_size: BlockSize,
    /// The client is known to come back after a disconnection, and to ask again. When the server stops it is disconnected rather than
    /// told, as a refusal would reach the guest behind it.
    pub reconnects: bool,
}

/// The size constraints of an export, in bytes (NBD protocol, "Size constraints").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Offsets and lengths are multiples of it: a power of 2, at most 65536. Others are refused before they reach the export.
    pub minimum: u32,
    /// Aligned to it requests are cheap: a power of 2, at least `minimum` and 512.
    pub preferred: u32,
    /// The largest READ or WRITE, at least `preferred`. More than [`crate::protocol::MAX_PAYLOAD`] is taken as that.
    pub maximum: u32,
}

impl Default for BlockSize {
    /// Any alignment, best in memory pages, and up to [`crate::protocol::MAX_PAYLOAD`].
    fn default() -> Self {
        Self {
            minimum: 1,
            preferred: 4096,
            maximum: crate::protocol::MAX_PAYLOAD,
        }
    }
}

/// One stretch of a disk, as `base:allocation` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockExtent {
    /// Bytes, more than 0.
    pub len: u64,
    /// No space is allocated for it.
    pub hole: bool,
    /// It reads as zeros.
    pub zero: bool,
}

impl BlockExtent {
    /// A stretch with data.
    pub fn data(len: u64) -> Self {
        Self {
            len,
            hole: false,
            zero: false,
        }
    }

    /// A stretch without space, which reads as zeros.
    pub fn hole(len: u64) -> Self {
        Self {
            len,
            hole: true,
            zero: true,
        }
    }
}

/// One stretch of a disk, as `epochgate:held` describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldExtent {
    /// Bytes, more than 0.
    pub len: u64,
    /// Its newest content is held in an epoch, and not yet in the image.
    pub held: bool,
}

impl ExportInfo {
    /// A disk of `size` bytes with every ability but a changing size, any alignment, and several connections at once.
    pub fn full(size: u64) -> Self {
        Self {
            size,
            read_only: false,
            description: String::new(),
            rotational: false,
            multi_conn: true,
            can_fua: true,
            can_flush: true,
            can_trim: true,
            can_zeroes: true,
            can_fast_zero: true,
            can_cache: true,
            can_resize: false,
            block_size: BlockSize::default(),
            reconnects: false,
        }
    }
}

/// One attachment to a disk. It lives as long as its connection (and the requests of that connection that are under way);
/// dropping it detaches.
///
/// All calls may come from several threads at once. The connection has checked before every call that the range is not empty and
/// lies within [`ExportInfo::size`], that the export is writable for the calls that change it, and that the flags and the
/// operation were advertised.
pub trait Export: Send + Sync + 'static {
    /// What the client is told. Asked once, right after the attachment.
    fn info(&self) -> ExportInfo;

    /// Fills `buf` from `offset` if that needs no waiting for storage. `Ok(false)`: it would block; `buf` then holds anything,
    /// and [`Export::read`] follows on a worker.
    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, IoError>;

    /// Fills `buf` from `offset`. May block.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError>;

    /// The file that has this whole range at the same offset, in its newest state and in the page cache, if the export knows one: the
    /// range can then be sent without a copy. What is written to it after the call may be seen, as by any read that is under way.
    fn cached_in(&self, offset: u64, len: u64) -> Option<&File> {
        let _ = (offset, len);
        None
    }

    /// Writes `data` at `offset` if that needs no waiting. `Ok(false)`: it would block, and [`Export::write`] follows on a worker with the
    /// same data.
    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Result<bool, IoError>;

    /// Writes `data` at `offset`; durable on return if `fua`. May block.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError>;

    /// Makes every write that was answered before this call durable, in the sense of the export's mode. May block.
    fn flush(&self) -> Result<(), IoError>;

    /// The client no longer needs the content of this range. May block.
    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError>;

    /// Makes the range read as zeros. `may_trim`: space may be given back (NO_HOLE was not set). `fast`: fail with
    /// [`IoError::NotSup`] at once rather than be as slow as a write. May block.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_trim: bool,
        fast: bool,
        fua: bool,
    ) -> Result<(), IoError>;

    /// What is allocated and what reads as zeros, from `offset` on: at least one extent, at most `max_extents`, consecutive. They
    /// may end before or behind `offset + len`. May block.
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        let _ = (offset, max_extents);
        Ok(vec![BlockExtent::data(len)])
    }

    /// What is held in an epoch and not yet in the image, with the rules of [`Export::block_status`].
    fn held_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<HeldExtent>, IoError> {
        let _ = (offset, max_extents);
        Ok(vec![HeldExtent { len, held: false }])
    }

    /// The epoch that it shows, if that is one of the past; none: it shows the disk as it is now.
    fn shows(&self) -> Option<Epoch> {
        None
    }

    /// The client will need this range soon. Nothing has to come of it. May block.
    fn cache(&self, offset: u64, len: u64) -> Result<(), IoError> {
        let _ = (offset, len);
        Ok(())
    }

    /// Where its requests are counted; none: nowhere that is seen.
    fn meter(&self) -> Option<Arc<Meter>> {
        None
    }

    /// Makes the disk `new_size` bytes long, which is more than 0; what is new reads as zeros. May block.
    fn resize(&self, new_size: u64) -> Result<(), IoError> {
        let _ = new_size;
        Err(IoError::Perm)
    }
}

/// A point in time since which a client asks for changes of a disk. It is kept as long as this is.
pub trait Since: Send + Sync + 'static {
    /// Which parts of a range have changed from there on up to an epoch of the past: begin and end of each, in order. Without `until`,
    /// what has changed in the image up to now; what is [held](Export::held_status) is not looked at. May block.
    ///
    /// # Errors
    /// [`IoError::Inval`] if `until` is before this point.
    fn changed(
        &self,
        until: Option<Epoch>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<(u64, u64)>, IoError>;
}

/// A metadata context with a point in time.
#[derive(Clone)]
pub struct ChangedContext {
    /// Its name, as the client has asked for it.
    pub name: String,
    /// The point.
    pub since: Arc<dyn Since>,
}

impl fmt::Debug for ChangedContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangedContext")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// One line of the answer to NBD_OPT_LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportListing {
    /// The name to ask for, at most 4096 bytes.
    pub name: String,
    /// One line for people. May be empty.
    pub description: String,
}

/// Why an export can't be attached. The message goes to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefused {
    /// There is no such export (NBD_REP_ERR_UNKNOWN).
    #[error("{0}")]
    Unknown(String),
    /// The export exists, but not for this client now (NBD_REP_ERR_POLICY).
    #[error("{0}")]
    Policy(String),
    /// The server stops (NBD_REP_ERR_SHUTDOWN).
    #[error("the server is shutting down")]
    Shutdown,
}

/// Finds exports by name.
pub trait ExportDirectory: Send + Sync + 'static {
    /// Every name under which the disk that is meant by `name` can be asked for, `name` without what only tells attachments apart
    /// included. Access rules are about disks: no second name may lead around them.
    fn names(&self, name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    /// What NBD_OPT_LIST shows.
    fn list(&self) -> Vec<ExportListing>;

    /// What [`Export::info`] would say after [`ExportDirectory::open`], without attaching (NBD_OPT_INFO).
    fn describe(&self, name: &str) -> Result<ExportInfo, OpenRefused>;

    /// Of these queries, those that name in full a metadata context with a point in time that this export has, in their order, and
    /// at most [`MAX_CHANGED`](crate::agreed::MAX_CHANGED). Each counts as an attachment as long as it is kept; the `cutter` ends the
    /// connection that asks. May block.
    fn changed_contexts(
        &self,
        name: &str,
        queries: &[String],
        cutter: &Cutter,
    ) -> Vec<ChangedContext> {
        let _ = (name, queries, cutter);
        Vec::new()
    }

    /// The names of such contexts to show to a client that looks for them: those that a query names, or the beginning of, up to a `:`;
    /// without a query those that people have given a name. Not all, if there are many. May block.
    fn list_contexts(&self, name: &str, queries: &[String]) -> Vec<String> {
        let _ = (name, queries);
        Vec::new()
    }

    /// Attaches. The `cutter` ends this very connection and stays usable, without effect, after it has ended.
    fn open(&self, name: &str, cutter: Cutter) -> Result<Arc<dyn Export>, OpenRefused>;
}

/// Ends one connection: at once, or after what is under way.
#[derive(Clone)]
pub struct Cutter {
    cut: Arc<dyn Fn() + Send + Sync>,
    end: Arc<dyn Fn() + Send + Sync>,
}

impl Cutter {
    /// A cutter that calls `cut` to shut the socket down in both directions, so that nothing more is read from it or answered on it,
    /// and `end` to take no further requests but answer those under way. Neither may block, and both may be called any number
    /// of times, from any thread.
    pub fn new(
        cut: impl Fn() + Send + Sync + 'static,
        end: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        Self {
            cut: Arc::new(cut),
            end: Arc::new(end),
        }
    }

    /// A cutter for an attachment without a connection.
    pub fn inert() -> Self {
        Self::new(|| {}, || {})
    }

    /// Cuts the connection. Returns at once; requests that an export is working on end by themselves, unanswered.
    pub fn cut(&self) {
        (self.cut)();
    }

    /// Has the connection end when all that was asked is answered. Returns at once.
    pub fn end(&self) {
        (self.end)();
    }
}

impl fmt::Debug for Cutter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cutter")
    }
}
