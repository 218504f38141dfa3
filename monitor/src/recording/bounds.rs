//! What a recording may not exceed. A file may come from anywhere: it is checked against these before memory is taken for it.

use std::time::Duration;

/// Samples of one recording: 18 hours at one a second, 1.8 hours at ten. In memory that is about 23 MB.
pub const MAX_SAMPLES: usize = 1 << 16;

/// Bytes of a file. All signals of a full recording, not compressed at all, are less.
pub const MAX_FILE_BYTES: usize = 32 << 20;

/// Bytes of the header as JSON.
pub(super) const MAX_HEADER_BYTES: usize = 64 << 10;

/// Columns of a file: more than there will be signals.
pub(super) const MAX_COLUMNS: usize = 512;

/// Bytes of a name: of a load, a kind of fault, a phase, a tag, QEMU's version.
pub(super) const MAX_NAME_BYTES: usize = 128;

/// Bytes of the note.
pub(super) const MAX_NOTE_BYTES: usize = 8 << 10;

/// Phases, and tags.
pub(super) const MAX_MARKS: usize = 256;

/// Bytes of all samples of a file before they are compressed.
pub(super) const MAX_BODY_BYTES: usize = 32 << 20;

/// Recordings of a data set.
pub(super) const MAX_RECORDINGS: usize = 10_000;

/// Distance of two samples: below, what is measured are the ticks of the host's clock; above, most faults are over.
pub const INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(10);
