//! Reads what lists name out of packs, and checks it.

use std::io;

use nbd_server::storage::objects::Objects;

use crate::BackupError;
use crate::format::pack::{self, END, MOST_PACK, RECORD, Record};
use crate::format::{DiskOf, Entry, FAN, Located, REGION, SPAN, list, pieces, unpack};
use crate::repository::pack_name;

/// Most bytes of a pack that are asked for at once.
const MOST_AT_ONCE: u32 = 4 << 20;
/// What lies between two blocks is read along if it is no more than this.
const GAP: u32 = 64 << 10;

/// The content of one block or list.
pub(crate) fn one(objects: &Objects, group: &str, at: &Located) -> Result<Vec<u8>, BackupError> {
    let mut content = Vec::new();
    each(objects, group, &[at], &mut |_, raw| {
        content = raw;
        Ok(())
    })?;
    Ok(content)
}

/// The content of many, with few requests: `done` gets each with its number in `wanted`, in any order.
pub(crate) fn each(
    objects: &Objects,
    group: &str,
    wanted: &[&Located],
    done: &mut dyn FnMut(usize, Vec<u8>) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let mut order: Vec<(usize, &Located)> = wanted.iter().copied().enumerate().collect();
    order.sort_by_key(|(_, at)| (&at.backup, at.pack, at.offset));
    let mut rest = order.as_slice();
    while let Some((_, first)) = rest.first() {
        let mut end = first.offset + first.stored;
        let mut count = 1;
        for (_, next) in rest.iter().skip(1) {
            let same = next.backup == first.backup && next.pack == first.pack;
            let reach = end.max(next.offset.saturating_add(next.stored));
            if !same || next.offset > end.saturating_add(GAP) || reach - first.offset > MOST_AT_ONCE
            {
                break;
            }
            end = reach;
            count += 1;
        }
        let (now, later) = rest.split_at(count);
        rest = later;
        let name = pack_name(group, &first.backup, first.pack);
        let data = objects.get_range(&name, u64::from(first.offset)..u64::from(end));
        let data = data.map_err(|error| short(&name, error))?;
        for (number, at) in now {
            let start = usize::try_from(at.offset - first.offset).unwrap_or(usize::MAX);
            let len = usize::try_from(at.stored).unwrap_or(usize::MAX);
            let stored = data
                .get(start..start.saturating_add(len))
                .ok_or_else(|| BackupError::damaged(&name, "it is shorter than it was"))?;
            let raw = unpack(stored, &at.digest).map_err(|error| {
                BackupError::damaged(&name, format!("at byte {}, {error}", at.offset))
            })?;
            done(*number, raw)?;
        }
    }
    Ok(())
}

/// A range that does not exist is damage; stores call it by many names.
fn short(name: &str, error: nbd_server::storage::objects::ObjectError) -> BackupError {
    use nbd_server::storage::objects::ObjectError;
    match error {
        ObjectError::Failed { why, .. }
            if why.contains("InvalidRange") || why.contains("416") || why.contains("range") =>
        {
            BackupError::damaged(name, "it is shorter than it was")
        }
        error => error.into(),
    }
}

/// A list of `count` entries.
pub(crate) fn list_at(
    objects: &Objects,
    group: &str,
    entry: &Entry,
    count: usize,
) -> Result<Vec<Entry>, BackupError> {
    let Some(at) = entry.located() else {
        return Ok(vec![Entry::Zeros; count]);
    };
    let raw = one(objects, group, at)?;
    list::decode(&raw, count).map_err(|error| {
        let name = pack_name(group, &at.backup, at.pack);
        BackupError::damaged(&name, format!("at byte {}, {error}", at.offset))
    })
}

/// The lists of a disk, one for each region, as they are asked for in order. Keeps the list above in memory.
#[derive(Debug)]
pub(crate) struct Regions<'a> {
    objects: &'a Objects,
    group: &'a str,
    disk: &'a DiskOf,
    span: Option<(usize, Vec<Entry>)>,
}

impl<'a> Regions<'a> {
    pub fn new(objects: &'a Objects, group: &'a str, disk: &'a DiskOf) -> Self {
        Self {
            objects,
            group,
            disk,
            span: None,
        }
    }

    /// Where the list of a region is; none beyond the end of the disk.
    pub fn entry(&mut self, region: usize) -> Result<Option<Entry>, BackupError> {
        let number = region / FAN;
        if self.span.as_ref().is_none_or(|(kept, _)| *kept != number) {
            let Some(span) = self.disk.spans.get(number) else {
                return Ok(None);
            };
            let start = number as u64 * SPAN;
            let count = pieces((self.disk.size - start).min(SPAN), REGION);
            let list = list_at(self.objects, self.group, span, count)?;
            self.span = Some((number, list));
        }
        let list = self.span.as_ref().map(|(_, list)| list);
        Ok(list.and_then(|list| list.get(region % FAN)).cloned())
    }
}

/// What a pack says is in it, without reading the rest.
pub(crate) fn table(objects: &Objects, name: &str, size: u64) -> Result<Vec<Record>, BackupError> {
    let damaged = |error: crate::format::FormatError| BackupError::damaged(name, error.to_string());
    let end_at = size.checked_sub(END as u64).filter(|_| size <= MOST_PACK);
    let Some(end_at) = end_at else {
        return Err(BackupError::damaged(name, "it has a size that no pack has"));
    };
    let (count, digest) = pack::end(&objects.get_range(name, end_at..size)?).map_err(damaged)?;
    let Some(start) = end_at.checked_sub((count * RECORD) as u64) else {
        return Err(BackupError::damaged(name, "it is too short for its table"));
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    let bytes = objects.get_range(name, start..end_at)?;
    pack::records(&bytes, &digest, start).map_err(damaged)
}

/// Writes at a place of a file, with what went wrong.
pub(crate) fn write_at(file: &std::fs::File, data: &[u8], at: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    file.write_all_at(data, at)
}
