//! What one epoch changes on a disk: a range with data, zeros or nothing worth keeping.
//! Knows nothing of how extents are stored.

use serde::{Deserialize, Serialize};

/// What happens to the range of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExtentKind {
    /// The range takes the bytes that come with it.
    Data,
    /// The range reads as zeros and keeps its space (NBD protocol, `NBD_CMD_FLAG_NO_HOLE`).
    Zero,
    /// The range reads as zeros and may give its space back.
    Hole,
    /// The range is no longer needed; its content is undefined until written (NBD protocol, `NBD_CMD_TRIM`).
    Trim,
}

/// Content of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Bytes to write; as many as the extent is long.
    Data(&'a [u8]),
    /// Zeros, with space for what may be written later.
    Zero,
    /// Zeros, without space where the image can do that.
    Hole,
    /// Undefined from now on.
    Trim,
}

/// One changed range of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent<'a> {
    /// Index of the disk in the table that the log was opened with.
    pub disk: u16,
    /// First byte on the disk.
    pub offset: u64,
    /// Length in bytes, at least 1. For [`Content::Data`] the length of the slice.
    pub len: u64,
    /// What the range becomes.
    pub content: Content<'a>,
}

impl Extent<'_> {
    /// Kind of the content.
    #[must_use]
    pub const fn kind(&self) -> ExtentKind {
        match self.content {
            Content::Data(_) => ExtentKind::Data,
            Content::Zero => ExtentKind::Zero,
            Content::Hole => ExtentKind::Hole,
            Content::Trim => ExtentKind::Trim,
        }
    }
}
