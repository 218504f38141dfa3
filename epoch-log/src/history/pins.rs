//! Points in time with a name, which are never trimmed. Knows the file that they are in and nothing of runs.

use serde::{Deserialize, Serialize};

use super::HistoryError;
use super::format::NEVER;
use super::live::Kept;
use super::run::failed;
use crate::Epoch;
use crate::disk::LogDir;

const NAME: &str = "PINS";
/// First line of the file.
const TITLE: &str = "epochgate pins 1";
/// Longest name, in bytes.
const MAX_NAME: usize = 64;
/// Most pins: their file stays small.
pub const MAX_PINS: usize = 4096;
/// Bytes of their file, at most.
const MOST_BYTES: usize = 1 << 20;

/// A point in time with a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its name.
    pub name: String,
    /// The point.
    #[serde(flatten)]
    pub point: Kept,
    /// Number of its boundary.
    #[serde(skip)]
    pub(super) seq: u64,
}

/// Reads the pins of a history.
pub fn load(dir: &LogDir) -> Result<Vec<Pin>, HistoryError> {
    let path = dir.path().join(NAME);
    let text = dir
        .read_text(NAME, MOST_BYTES)
        .map_err(|source| failed("read the pins of", path.clone(), source))?;
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    parse(&text).ok_or(HistoryError::Damaged {
        file: path,
        offset: 0,
        what: "a line that names no pin",
    })
}

/// Makes `pins` all that there are, durably.
pub fn store(dir: &LogDir, pins: &[Pin]) -> Result<(), HistoryError> {
    let mut text = format!("{TITLE}\n");
    for pin in pins {
        let Kept {
            epoch,
            until,
            time_ms,
        } = pin.point;
        text.push_str(&format!(
            "{} {epoch} {until} {time_ms} {}\n",
            pin.seq, pin.name
        ));
    }
    dir.replace(NAME, &text)
        .map_err(|source| failed("write the pins of", dir.path().join(NAME), source))
}

fn parse(text: &str) -> Option<Vec<Pin>> {
    let mut lines = text.lines();
    if lines.next()? != TITLE {
        return None;
    }
    let pin = |line: &str| {
        let mut words = line.splitn(5, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (seq, epoch, until, time_ms) = (number()?, number()?, number()?, number()?);
        if seq >= NEVER {
            return None;
        }
        let name = words.next()?.to_owned();
        Some(Pin {
            name,
            seq,
            point: Kept {
                epoch: Epoch(epoch),
                until: Epoch(until),
                time_ms,
            },
        })
    };
    lines.map(pin).collect()
}

/// Refuses what can't be the name of a pin.
pub fn check_name(name: &str) -> Result<(), HistoryError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(HistoryError::BadPin {
        name: name.to_owned(),
    })
}
