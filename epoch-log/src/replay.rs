//! Reads data records back, verified again, as extents. Knows nothing of which epochs count.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    Content, Damage, DamageKind, Epoch, Extent, ExtentKind, LogError,
    disk::{LogDir, LogFile},
    format::{DataRecord, Record, SegmentKey},
    recovery::RecordPlace,
};

/// Reads the data record at `place` and its payload, which replaces the content of `payload`.
///
/// # Errors
/// [`LogError::Damaged`] if it is not what was committed, or [`LogError::Io`].
pub(crate) fn read_record(
    dir: &LogDir,
    file: &LogFile,
    key: &SegmentKey,
    epoch: Epoch,
    place: &RecordPlace,
    payload: &mut Vec<u8>,
) -> Result<DataRecord, LogError> {
    let damaged = |what| {
        let (segment, offset) = (place.at.segment, place.at.offset);
        LogError::Damaged(Damage {
            segment,
            offset,
            epoch: Some(epoch),
            what,
        })
    };
    let read = |bytes: &mut Vec<u8>, len: u64, offset: u64| {
        bytes.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        let got = file.read_at(bytes, offset);
        got.map(|got| got as u64 == len)
            .map_err(|e| LogError::io("read", dir.path().join(file.name()), e))
    };
    let mut header = Vec::new();
    if !read(&mut header, place.header_len, place.at.offset)? {
        return Err(damaged(DamageKind::DataMissing));
    }
    let Some(Record::Data(record)) = Record::decode(&header, key, place.at, 0) else {
        return Err(damaged(DamageKind::DataMissing));
    };
    if !read(
        payload,
        place.payload_len,
        place.at.offset + place.header_len,
    )? || xxh3_64_with_seed(payload, key.salt) != record.payload_sum
    {
        return Err(damaged(DamageKind::DataChecksum));
    }
    Ok(record)
}

/// Visits the extents of a record whose payload was read.
pub(crate) fn visit_extents<E>(
    record: &DataRecord,
    mut payload: &[u8],
    mut visit: impl FnMut(Extent<'_>) -> Result<(), E>,
) -> Result<(), E> {
    for entry in &record.extents {
        let content = match entry.kind {
            ExtentKind::Zero => Content::Zero,
            ExtentKind::Hole => Content::Hole,
            ExtentKind::Trim => Content::Trim,
            ExtentKind::Data => {
                // Decoding has checked that the lengths add up to the payload.
                let len = usize::try_from(entry.len).unwrap_or(usize::MAX);
                let (data, rest) = payload.split_at_checked(len).unwrap_or((payload, &[]));
                payload = rest;
                Content::Data(data)
            }
        };
        visit(Extent {
            disk: entry.disk,
            offset: entry.offset,
            len: entry.len,
            content,
        })?;
    }
    Ok(())
}
