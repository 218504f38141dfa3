//! Alters the files of a log as the input says.
//!
//! Records of the input: what (1 byte), which file or item (1), where (2), how much (1). What is altered is a place in a file, whole
//! sectors, or an item: a record or a header, by its number in the log.

use std::sync::Arc;

use super::Files;
use super::records::{Item, SECTOR, sign_header, sign_record};
use super::sample::Sample;

/// Most alterations of one input.
const MOST: usize = 12;
/// Longest that a file may become.
const LONGEST: usize = 64 << 10;

/// What came of it.
pub struct Altered {
    pub files: Files,
    /// Somebody has computed checksums anew.
    pub forged: bool,
}

/// One alteration.
struct Step {
    what: u8,
    which: usize,
    at: usize,
    much: usize,
}

/// Alters the files of `sample`.
pub fn alter(sample: &Sample, script: &[u8]) -> Altered {
    let mut altered = Altered {
        files: sample.files.clone(),
        forged: false,
    };
    let steps = script.as_chunks::<5>().0;
    for &[what, which, high, low, much] in steps.iter().take(MOST) {
        let step = Step {
            what: what % 20,
            which: which.into(),
            at: usize::from(u16::from_be_bytes([high, low])),
            much: much.into(),
        };
        apply(sample, &mut altered, &step);
    }
    altered
}

fn apply(sample: &Sample, altered: &mut Altered, step: &Step) {
    let files = &mut altered.files;
    if files.is_empty() {
        return;
    }
    match step.what {
        0..=5 => in_file(files, step),
        6 | 7 => sectors(files, step),
        8..=11 => items(sample, files, step),
        12..=15 => names(files, step),
        _ => {
            forge(sample, files, step);
            altered.forged = true;
        }
    }
}

fn name_of(files: &Files, number: usize) -> String {
    files
        .keys()
        .nth(number % files.len())
        .cloned()
        .unwrap_or_default()
}

/// A file to be changed.
fn changed<'a>(files: &'a mut Files, name: &str) -> Option<&'a mut Vec<u8>> {
    files.get_mut(name).map(Arc::make_mut)
}

/// Bytes at some place of a file.
fn in_file(files: &mut Files, step: &Step) {
    let name = name_of(files, step.which);
    let Some(file) = changed(files, &name).filter(|file| !file.is_empty()) else {
        return;
    };
    let at = step.at % file.len();
    let sector = at / SECTOR * SECTOR;
    match step.what {
        0 => file[at] ^= 1 << (step.much % 8),
        1 => file[at..].iter_mut().take(step.much).for_each(|b| *b = 0),
        2 => fill(file, sector, SECTOR, step.much),
        3 => fill(file, at / 4096 * 4096, 4096, step.much),
        4 => file.truncate(at),
        _ => {
            let piece: Vec<u8> = file[sector..]
                .iter()
                .copied()
                .take(step.much * 64)
                .collect();
            file.extend(piece);
            file.truncate(LONGEST);
        }
    }
}

fn fill(file: &mut [u8], at: usize, len: usize, with: usize) {
    file[at..]
        .iter_mut()
        .take(len)
        .for_each(|b| *b = with as u8);
}

/// Copies sectors to another place, or exchanges them: `which` names both files, four bits each.
fn sectors(files: &mut Files, step: &Step) {
    let (from, to) = (
        name_of(files, step.which >> 4),
        name_of(files, step.which & 15),
    );
    let source = files[&from].clone();
    let count = |file: &[u8]| file.len().div_ceil(SECTOR).max(1);
    let start = (step.at >> 8) % count(&source) * SECTOR;
    let Some(target) = changed(files, &to) else {
        return;
    };
    let target_start = (step.at & 255) % count(target) * SECTOR;
    let len = (1 + step.much % 24) * SECTOR;
    let piece: Vec<u8> = source[start..].iter().copied().take(len).collect();
    let replaced = put(target, target_start, &piece);
    if step.what == 7
        && let Some(file) = changed(files, &from)
    {
        put(file, start, &replaced);
    }
}

/// Writes `piece` over a file. Returns what was there.
fn put(file: &mut Vec<u8>, at: usize, piece: &[u8]) -> Vec<u8> {
    let end = at + piece.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    let before = file[at..end].to_vec();
    file[at..end].copy_from_slice(piece);
    file.truncate(LONGEST);
    before
}

/// The item with this number, and the file that it is in.
fn item(sample: &Sample, number: usize) -> (String, Item) {
    let all = sample.items.iter();
    let all = all.flat_map(|(name, items)| items.iter().map(move |placed| (name, placed)));
    let count = all.clone().count();
    let found = all.clone().nth(number % count);
    let (name, placed) = found.expect("every log holds a header");
    (name.clone(), placed.item.clone())
}

/// Whole records and headers.
fn items(sample: &Sample, files: &mut Files, step: &Step) {
    let (name, found) = item(sample, step.which);
    let copies = found.copies();
    match step.what {
        // Some or all copies are gone.
        8 => {
            let Some(file) = changed(files, &name) else {
                return;
            };
            for (number, (from, to)) in copies.into_iter().enumerate() {
                if step.at >> number & 1 == 1 && from < file.len() {
                    fill(file, from, to - from, step.much);
                }
            }
        }
        // A byte of the data.
        9 => {
            if let (Item::Data { at, end, .. }, Some(file)) = (found, changed(files, &name))
                && let Some(byte) = file.get_mut(at + step.at % (end - at))
            {
                *byte = byte.wrapping_add(1 + step.much as u8 % 255);
            }
        }
        // In the place of another one, or changed with it.
        _ => {
            let (other, target) = item(sample, step.at);
            let (from, to) = copies[step.much % copies.len()];
            let (target, _) = target.copies()[step.much / 2 % target.copies().len()];
            let Some(piece) = files.get(&name).and_then(|file| file.get(from..to)) else {
                return;
            };
            let piece = piece.to_vec();
            let Some(file) = changed(files, &other) else {
                return;
            };
            let before = put(file, target, &piece);
            if step.what == 11
                && let Some(file) = changed(files, &name)
            {
                put(file, from, &before);
            }
        }
    }
}

/// Files that are gone, in the place of others, or called something else.
fn names(files: &mut Files, step: &Step) {
    let name = name_of(files, step.which);
    match step.what {
        12 => {
            files.remove(&name);
        }
        13 => {
            let other = name_of(files, step.at);
            if let Some(one) = files.remove(&name) {
                let two = files.insert(other, one);
                if let Some(two) = two {
                    files.insert(name, two);
                }
            }
        }
        14 => {
            let number = match step.much % 4 {
                0 => step.at as u64 % 16,
                1 => u64::MAX - step.at as u64,
                2 => 1 << (step.at % 64),
                _ => step.at as u64,
            };
            if let Some(file) = files.remove(&name) {
                files.insert(format!("{number:016}.seg"), file);
            }
        }
        _ => {
            const ENDS: [&str; 4] = [".seg.new", ".seg.spare", ".seg", ".seg.kept"];
            let stray = format!("{:016}{}", step.at % 9, ENDS[step.much % 4]);
            let content = files[&name].clone();
            files.entry(stray).or_insert(content);
        }
    }
}

/// Overwrites a field of a record or header and makes it valid again.
fn forge(sample: &Sample, files: &mut Files, step: &Step) {
    let (name, found) = item(sample, step.which);
    let Some(file) = changed(files, &name) else {
        return;
    };
    let values = [0, 1, step.much as u64, u64::MAX, u64::MAX >> 1, 8 << 20];
    for (from, to) in found.copies() {
        // Of a header everything counts but magic and checksum; half of the time a field of numbers is hit as a whole.
        let field = 16 + step.at % (to - from - 16);
        let bytes = values[step.what as usize % 3 + step.much % 4].to_le_bytes();
        let (field, len) = if step.at & 0x8000 == 0 {
            (field, 1)
        } else {
            (field / 8 * 8, 8)
        };
        let Some(place) = file.get_mut(from + field..from + field + len) else {
            return;
        };
        place.copy_from_slice(&bytes[..len]);
        match found {
            Item::Header { .. } => sign_header(file, from),
            Item::Data { .. } | Item::State { .. } => sign_record(file, from),
        }
    }
}
