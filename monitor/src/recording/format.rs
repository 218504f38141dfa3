//! The bytes of a recording.
//!
//! ```text
//! 0      6   "EGREC\n"
//! 6      2   version of the format, little-endian as all numbers here
//! 8      4   H: length of the header
//! 12     H   header: a JSON object with `signals` (version of the list), `samples` (how many: N),
//!            `columns` (names of the signals that have a value anywhere: C of them) and `run` (super::Header)
//! 12+H   4   B: length of the body
//! 16+H   B   body: one frame of Zstandard, of (1 + C) columns of 4·N bytes
//! 16+H+B 8   xxh3 (64 bits) of all before
//! ```
//!
//! A column is N numbers of 32 bits, cut into bytes: first the lowest byte of all, then the second, and so on, which is compressed best.
//! The first column has milliseconds since the last sample (the first one: since the start), the others `f32`. A missing value is the
//! number that is none, with the bits of [`MISSING`]; there is no other and no infinity.
//!
//! Values keep 12 bits behind the leading one ([`keep`]): a relative error below 0.013 %, which is less than the noise of any of them, and
//! the file is half as long.
//!
//! The version of the format changes when the bytes do; a reader knows all older ones. The version of the signals is in the header: a
//! reader refuses newer ones, and signals that it does not know.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::Recording;
use super::bounds::{MAX_BODY_BYTES, MAX_COLUMNS, MAX_FILE_BYTES, MAX_HEADER_BYTES, MAX_SAMPLES};
use super::error::RecordingError;
use super::header::Header;
use crate::sample::Values;
use crate::signals::{SIGNALS_VERSION, Signal};

const MAGIC: &[u8; 6] = b"EGREC\n";
const VERSION: u16 = 1;

/// Zstandard's own measure of effort, of 22. A recording is made once; more gains less than 1 %.
const LEVEL: i32 = 19;

/// A value that is not there.
const MISSING: u32 = 0x7FC0_0000;

/// Bits of a value that are not kept, of the 23 behind the leading one.
const DROPPED_BITS: u32 = 11;

/// The header as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Preamble {
    signals: u32,
    samples: usize,
    columns: Vec<String>,
    run: Header,
}

/// The nearest value that a file can hold.
pub(super) fn keep(value: f32) -> f32 {
    let mask = (1_u32 << DROPPED_BITS) - 1;
    let bits = value.to_bits();
    let near = f32::from_bits(bits.wrapping_add(1 << (DROPPED_BITS - 1)) & !mask);
    // The largest numbers would become infinite.
    if near.is_finite() {
        near
    } else {
        f32::from_bits(bits & !mask)
    }
}

pub(super) fn encode(recording: &Recording) -> Result<Vec<u8>, RecordingError> {
    let samples = recording.samples();
    let there = |signal: &&Signal| {
        samples
            .iter()
            .any(|sample| sample.values.get(**signal).is_some())
    };
    let columns: Vec<Signal> = Signal::ALL.iter().filter(there).copied().collect();
    let preamble = Preamble {
        signals: SIGNALS_VERSION,
        samples: samples.len(),
        columns: columns
            .iter()
            .map(|signal| signal.name().to_owned())
            .collect(),
        run: recording.header().clone(),
    };
    let header =
        serde_json::to_vec(&preamble).map_err(|e| RecordingError::Invalid(e.to_string()))?;
    if header.len() > MAX_HEADER_BYTES {
        return Err(RecordingError::TooLarge {
            what: "bytes of its header",
            limit: MAX_HEADER_BYTES,
        });
    }
    let mut body = Vec::with_capacity((columns.len() + 1) * samples.len() * 4);
    let mut last = 0;
    // `Recording::push` keeps the differences within 32 bits.
    let steps = samples.iter().map(|sample| {
        let step = sample.at_ms - std::mem::replace(&mut last, sample.at_ms);
        u32::try_from(step).unwrap_or(u32::MAX)
    });
    append(&mut body, &steps.collect::<Vec<_>>());
    for signal in columns {
        let bits = samples
            .iter()
            .map(|sample| sample.values.get(signal).map_or(MISSING, f32::to_bits));
        append(&mut body, &bits.collect::<Vec<_>>());
    }
    let body = zstd::bulk::compress(&body, LEVEL).map_err(RecordingError::Compress)?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut out = Vec::with_capacity(header.len() + body.len() + 24);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&length(&header));
    out.extend_from_slice(&header);
    out.extend_from_slice(&length(&body));
    out.extend_from_slice(&body);
    out.extend_from_slice(&xxh3_64(&out).to_le_bytes());
    Ok(out)
}

/// Appends a column.
fn append(body: &mut Vec<u8>, column: &[u32]) {
    for byte in 0..4 {
        body.extend(column.iter().map(|number| number.to_le_bytes()[byte]));
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Recording, RecordingError> {
    if bytes.len() > MAX_FILE_BYTES {
        return Err(RecordingError::TooLarge {
            what: "bytes of the file",
            limit: MAX_FILE_BYTES,
        });
    }
    let mut rest = bytes;
    if take(&mut rest, MAGIC.len()).is_none_or(|magic| magic != MAGIC) {
        return Err(RecordingError::NotARecording);
    }
    let version = take_array(&mut rest)
        .map(u16::from_le_bytes)
        .ok_or(RecordingError::CutOff)?;
    if version == 0 || version > VERSION {
        let (what, found, known) = ("format", version.into(), VERSION.into());
        return Err(RecordingError::Version { what, found, known });
    }
    let header = take_part(&mut rest, MAX_HEADER_BYTES, "bytes of its header")?;
    let body = take_part(&mut rest, MAX_FILE_BYTES, "bytes of its body")?;
    let covered = bytes.len() - rest.len();
    let checksum = take_array(&mut rest)
        .map(u64::from_le_bytes)
        .ok_or(RecordingError::CutOff)?;
    if checksum != xxh3_64(bytes.get(..covered).unwrap_or_default()) {
        return Err(RecordingError::Checksum);
    }
    if !rest.is_empty() {
        return Err(invalid("there is something behind its end"));
    }
    read_samples(&read_preamble(header)?, body)
}

fn read_preamble(header: &[u8]) -> Result<Preamble, RecordingError> {
    // The version first: a header of a newer one may look different.
    #[derive(Deserialize)]
    struct SignalsOnly {
        signals: u32,
    }
    let unreadable =
        |error: serde_json::Error| RecordingError::Invalid(format!("its header: {error}"));
    let SignalsOnly { signals } = serde_json::from_slice(header).map_err(unreadable)?;
    if signals == 0 || signals > SIGNALS_VERSION {
        let (what, found, known) = ("signals", signals, SIGNALS_VERSION);
        return Err(RecordingError::Version { what, found, known });
    }
    serde_json::from_slice(header).map_err(unreadable)
}

fn read_samples(preamble: &Preamble, body: &[u8]) -> Result<Recording, RecordingError> {
    let (count, columns) = (preamble.samples, preamble.columns.len());
    if count > MAX_SAMPLES {
        return Err(RecordingError::TooLarge {
            what: "its samples",
            limit: MAX_SAMPLES,
        });
    }
    if columns > MAX_COLUMNS {
        return Err(RecordingError::TooLarge {
            what: "its columns",
            limit: MAX_COLUMNS,
        });
    }
    let mut signals = Vec::with_capacity(columns);
    for name in &preamble.columns {
        let signal = Signal::named(name)
            .ok_or_else(|| invalid(&format!("there is no signal \"{name}\"")))?;
        if signals.last().is_some_and(|last| *last >= signal) {
            return Err(invalid("its columns are not in order"));
        }
        signals.push(signal);
    }
    let expected = (columns + 1) * count * 4;
    if expected > MAX_BODY_BYTES {
        return Err(RecordingError::TooLarge {
            what: "bytes of its samples",
            limit: MAX_BODY_BYTES,
        });
    }
    // Not one byte more is unpacked than the header accounts for.
    let body =
        zstd::bulk::decompress(body, expected).map_err(|e| invalid(&format!("its body: {e}")))?;
    if body.len() != expected {
        return Err(invalid("its body is shorter than its header says"));
    }
    let mut recording = Recording::new(preamble.run.clone())?;
    recording.samples.reserve_exact(count);
    let number = |column: usize, row: usize| {
        let byte = |plane: usize| {
            body.get((column * 4 + plane) * count + row)
                .copied()
                .unwrap_or_default()
        };
        u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
    };
    let mut at_ms = 0_u64;
    for row in 0..count {
        at_ms = at_ms.saturating_add(number(0, row).into());
        let mut values = Values::MISSING;
        for (column, signal) in signals.iter().enumerate() {
            let bits = number(column + 1, row);
            let value = f32::from_bits(bits);
            if bits != MISSING && !value.is_finite() {
                return Err(invalid("a value is no number"));
            }
            values.set(*signal, value);
        }
        recording.push(at_ms, &values)?;
    }
    Ok(recording)
}

fn invalid(what: &str) -> RecordingError {
    RecordingError::Invalid(what.to_owned())
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    take(rest, N)?.try_into().ok()
}

/// Takes what a length precedes.
fn take_part<'a>(
    rest: &mut &'a [u8],
    limit: usize,
    what: &'static str,
) -> Result<&'a [u8], RecordingError> {
    let length = take_array(rest)
        .map(u32::from_le_bytes)
        .ok_or(RecordingError::CutOff)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > limit {
        return Err(RecordingError::TooLarge { what, limit });
    }
    take(rest, length).ok_or(RecordingError::CutOff)
}
