//! Alters the files of a history as the input says.
//!
//! Records of the input: what (1 byte), which file (1), where (2), how much (1). One of them makes the rest of the input a file.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::sample::Sample;
use crate::log::Files;

/// Most alterations of one input.
const MOST: usize = 12;
/// Longest that a file may become.
const LONGEST: usize = 96 << 10;
const PAGE: usize = 4096;

/// What somebody may write who wants to see something break.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    24,
    4095,
    4096,
    8192,
    65_535,
    65_536,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    u64::MAX - 1,
    u64::MAX,
];
/// Names that a file may get.
const NAMES: [&str; 8] = [
    "0000000000000001.run",
    "0000000000000002.run",
    "0000000000000099.run",
    "0000000000000002.cold",
    "0000000000000099.cold.new",
    "0000000000000001.gone",
    "PINS",
    "REWIND",
];

/// What came of it.
pub struct Altered {
    pub files: Files,
    /// No file was made up, no checksum was computed, and the run that grows is as it was.
    pub trusted: bool,
}

/// Alters the files of `sample`. Forged: checksums fit afterwards.
pub fn alter(sample: &Sample, script: &[u8], forged: bool) -> Altered {
    let mut files = sample.files.clone();
    let mut made_up = false;
    let mut rest = script;
    for _ in 0..MOST {
        let Some((&[what, which, high, low, much], after)) = rest.split_first_chunk::<5>() else {
            break;
        };
        rest = after;
        let at = usize::from(u16::from_be_bytes([high, low]));
        if what % 12 == 11 {
            let name = NAMES[usize::from(which) % NAMES.len()];
            files.insert(name.to_owned(), Arc::new(rest.to_vec()));
            made_up = true;
            break;
        }
        one(&mut files, what % 12, which, at, much);
    }
    if forged {
        let names: Vec<String> = files.keys().cloned().collect();
        for name in names {
            if let Some(file) = files.get_mut(&name).map(Arc::make_mut) {
                sign(file, !name.ends_with(".run"));
            }
        }
    }
    let newest = files.get(&sample.newest);
    let same = newest.is_some_and(|now| **now == *sample.files[&sample.newest]);
    let highest = files.keys().filter(|name| name.ends_with(".run")).max();
    Altered {
        trusted: same && highest == Some(&sample.newest) && !made_up && !forged,
        files,
    }
}

fn one(files: &mut Files, what: u8, which: u8, at: usize, much: u8) {
    let name_of = |number: u8| {
        files
            .keys()
            .nth(usize::from(number) % files.len().max(1))
            .cloned()
    };
    let Some(name) = name_of(which) else {
        return;
    };
    if what == 0 {
        files.remove(&name);
        return;
    }
    if what == 1 {
        // One file in place of another.
        let other = name_of(much);
        if let Some((other, bytes)) = other.zip(files.get(&name).cloned()) {
            files.insert(other, bytes);
        }
        return;
    }
    let Some(file) = files.get_mut(&name).map(Arc::make_mut) else {
        return;
    };
    if file.is_empty() {
        return;
    }
    let place = at % file.len();
    let page = place / PAGE * PAGE;
    match what {
        2 | 3 => file[place] ^= 1 << (much % 8),
        4 => file[place..]
            .iter_mut()
            .take(much.into())
            .for_each(|byte| *byte = 0),
        5 => file[page..]
            .iter_mut()
            .take(PAGE)
            .for_each(|byte| *byte = much),
        6 => file.truncate(place),
        7 => {
            // A page that there is already, at the end.
            let piece: Vec<u8> = file[page..].iter().copied().take(PAGE).collect();
            file.extend(piece);
            file.truncate(LONGEST);
        }
        _ => {
            // Numbers are at multiples of four bytes near the begin of a page.
            let page = usize::from(at as u8) % file.len().div_ceil(PAGE) * PAGE;
            let slot = page + (at >> 8) * 4;
            let number = NUMBERS[usize::from(much) % NUMBERS.len()].to_le_bytes();
            let wide = if what == 10 { 4 } else { 8 };
            for (to, from) in file.iter_mut().skip(slot).zip(&number[..wide]) {
                *to = *from;
            }
        }
    }
}

/// Eight bytes as a number; 0 beyond the end.
fn number(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk());
    found.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// Makes the checksums of a run, or of the stub of a cold one, fit: `epoch-log/src/history/format.rs` and `cold/stub.rs` draw them.
fn sign(file: &mut [u8], stub: bool) {
    let salt = number(file, 40);
    let last = file.len() / PAGE;
    // Tables lie where the trailer says, in a stub behind its head.
    let (tables, moved) = match stub {
        true => (
            2 * PAGE,
            number(file, PAGE + 48).wrapping_sub(2 * PAGE as u64),
        ),
        false => {
            let tables = number(file, last.saturating_sub(1) * PAGE + 56);
            (usize::try_from(tables).unwrap_or(usize::MAX), 0)
        }
    };
    for at in (0..file.len()).step_by(PAGE) {
        let Some(page) = file.get_mut(at..) else {
            return;
        };
        let whole = page.len() >= PAGE;
        match page.first_chunk::<8>() {
            Some(b"EGH1BAT\0") => {
                let records = |at| usize::try_from(number(page, at)).unwrap_or(usize::MAX);
                let head = records(40).saturating_mul(48).saturating_add(64);
                let head = head.saturating_add(records(48).saturating_mul(32));
                if let Some(body) = page.get(16..head) {
                    let sum = xxh3_64_with_seed(body, salt);
                    page[8..16].copy_from_slice(&sum.to_le_bytes());
                }
            }
            Some(b"EGH1RUN\0" | b"EGH1SEA\0" | b"EGH1END\0" | b"EGH1CLD\0") if whole => {
                let sum = xxh3_64_with_seed(&page[16..PAGE], 0);
                page[8..16].copy_from_slice(&sum.to_le_bytes());
            }
            _ if whole && at >= tables => {
                let seed = salt ^ (at as u64).wrapping_add(moved);
                let sum = xxh3_64_with_seed(&page[..PAGE - 8], seed);
                page[PAGE - 8..PAGE].copy_from_slice(&sum.to_le_bytes());
            }
            _ => {}
        }
    }
}
