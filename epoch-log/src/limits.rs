//! Every limit of the log in one table, each with its reason. Decoding refuses what exceeds them before it allocates.

/// Unit of all record positions and lengths in a segment: the smallest sector a disk writes whole.
pub const SECTOR: u64 = 512;

/// Distance between the two copies of a state record or segment header: one physical sector of today's disks, so that
/// losing one sector never loses both copies.
pub const COPY_DISTANCE: u64 = 4096;

/// Longest group or disk name in bytes: they are used in export names and paths, and 64 is plenty for both.
pub const MAX_NAME: usize = 64;

/// Longest id of an owner or standby in bytes: a name, a separator and a uuid fit twice. Both must fit into one sector.
pub const MAX_ID: usize = 128;

/// Longest reason kept with a generation in bytes, what is left of the sector. Longer ones are cut, they only inform.
pub const MAX_REASON: usize = 80;

/// Highest number of an epoch, generation, segment or state record that is taken for one: there is always room for further ones. At a
/// million a second they last for 290,000 years.
pub const MAX_NUMBER: u64 = u64::MAX >> 1;

/// Most disks in a group: keeps a segment header below 32 KiB.
pub const MAX_DISKS: usize = 256;

/// Most payload in one data record: bounds the memory that recovery and replay need.
pub const MAX_PAYLOAD: u64 = 8 << 20;

/// Most extents in one data record: keeps its extent table below 256 KiB.
pub const MAX_EXTENTS: usize = 8192;

/// Segment size unless configured: a full segment is freed at once, so smaller means sooner and larger means fewer files.
pub const DEFAULT_SEGMENT_BYTES: u64 = 64 << 20;

/// Spare segments unless configured: what a busy log needs until the images have caught up.
pub const DEFAULT_SPARE_SEGMENTS: usize = 4;

/// Space held back in the file `RESERVE` so that a full disk can still record fencing and free segments.
pub const RESERVE_BYTES: u64 = 256 << 10;
