//! Packs extents into data records: as few as the limits allow, payload never copied.
//! Knows nothing of segments; the log says where a record goes.

use std::io::IoSlice;

use xxhash_rust::xxh3::Xxh3;

use crate::{
    Content, DiskIdentity, Extent, LogError,
    format::{ExtentEntry, data_header_len, round_to_sector},
    limits::{MAX_EXTENTS, MAX_PAYLOAD, SECTOR},
};

static ZEROS: [u8; 512] = [0; 512];

/// One data record to be written.
#[derive(Debug, Default)]
pub(crate) struct Packed<'a> {
    pub entries: Vec<ExtentEntry>,
    slices: Vec<&'a [u8]>,
    pub payload_len: u64,
}

impl<'a> Packed<'a> {
    /// Length in the segment, padding included.
    pub fn total_len(&self) -> u64 {
        data_header_len(self.entries.len()) as u64 + round_to_sector(self.payload_len)
    }

    /// Checksum of the payload.
    pub fn payload_sum(&self, salt: u64) -> u64 {
        let mut sum = Xxh3::with_seed(salt);
        for slice in &self.slices {
            sum.update(slice);
        }
        sum.digest()
    }

    /// Everything to write: the encoded header, the payload, the padding.
    pub fn slices<'s>(&'s self, header: &'s [u8]) -> Vec<IoSlice<'s>> {
        let padding = round_to_sector(self.payload_len) - self.payload_len;
        let padding = usize::try_from(padding)
            .ok()
            .and_then(|len| ZEROS.get(..len))
            .unwrap_or_default();
        let mut slices = Vec::with_capacity(self.slices.len() + 2);
        slices.push(IoSlice::new(header));
        slices.extend(self.slices.iter().map(|slice| IoSlice::new(slice)));
        slices.push(IoSlice::new(padding));
        slices
    }

    fn push(&mut self, entry: ExtentEntry, data: &'a [u8]) {
        self.entries.push(entry);
        if !data.is_empty() {
            self.slices.push(data);
            self.payload_len += data.len() as u64;
        }
    }
}

/// Packs `extents` into records. An extent that does not fit into one is split.
pub(crate) fn pack<'a>(
    extents: &[Extent<'a>],
    disks: &[DiskIdentity],
) -> Result<Vec<Packed<'a>>, LogError> {
    let mut records = Vec::new();
    let mut current = Packed::default();
    for extent in extents {
        check(extent, disks)?;
        let kind = extent.kind();
        let mut rest: &'a [u8] = match extent.content {
            Content::Data(data) => data,
            Content::Zero | Content::Hole | Content::Trim => &[],
        };
        let mut offset = extent.offset;
        loop {
            let room = MAX_PAYLOAD - current.payload_len;
            // Less than a sector of room is not worth a piece of its own.
            if current.entries.len() == MAX_EXTENTS || (!rest.is_empty() && room < SECTOR) {
                records.push(std::mem::take(&mut current));
                continue;
            }
            let (data, later) = rest
                .split_at_checked(usize::try_from(room).unwrap_or(usize::MAX))
                .unwrap_or((rest, &[]));
            let len = if data.is_empty() {
                extent.len
            } else {
                data.len() as u64
            };
            current.push(
                ExtentEntry {
                    disk: extent.disk,
                    kind,
                    offset,
                    len,
                },
                data,
            );
            offset += len;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }
    if !current.entries.is_empty() {
        records.push(current);
    }
    Ok(records)
}

fn check(extent: &Extent<'_>, disks: &[DiskIdentity]) -> Result<(), LogError> {
    let inside = disks.get(usize::from(extent.disk)).is_some_and(|disk| {
        extent.len > 0
            && extent
                .offset
                .checked_add(extent.len)
                .is_some_and(|end| end <= disk.size)
    });
    let honest = match extent.content {
        Content::Data(data) => data.len() as u64 == extent.len,
        Content::Zero | Content::Hole | Content::Trim => true,
    };
    if inside && honest {
        return Ok(());
    }
    Err(LogError::BadExtent {
        disk: extent.disk,
        offset: extent.offset,
        len: extent.len,
    })
}
