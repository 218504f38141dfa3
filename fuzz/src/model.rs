//! Models of the monitor: what is taken can be judged with, and is written and read as the same again; all else is refused with a reason.
//!
//! Input: a byte that says what the rest is. An even one: a file as it is. An odd one: the length of a header (2 bytes), the header, and
//! a body, which become a file with a right checksum; bit 1: the body is compressed first, bit 2: its version is another one, bit 3: the
//! versions in the header stay as they are. Where not, they are made to fit, and a feature named `#NUMBER` is one that there is: so inputs
//! outlive a change of the features.

use monitor::features::{FEATURES_VERSION, Window, features};
use monitor::model::{Judgement, Model};
use monitor::signals::SIGNALS_VERSION;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

/// What a body that is not compressed by us is said to have, in bytes: what a fuzzer packs in a few bytes takes long to be packed again.
const CLAIMED: usize = 64 << 10;

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&how, input)) = data.split_first() else {
        return;
    };
    let file = match how & 1 {
        0 => input.to_vec(),
        _ => match forged(how, input) {
            Some(file) => file,
            None => return,
        },
    };
    let model = match Model::from_bytes(&file) {
        Ok(model) => model,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let bytes = model.to_bytes().unwrap();
    let again = Model::from_bytes(&bytes).unwrap();
    assert_eq!(again.header(), model.header());
    assert_eq!(again.to_bytes().unwrap(), bytes);
    for window in windows(input) {
        let judged = model.judge(&window);
        is_sound(&judged);
        assert_eq!(again.judge(&window), judged);
    }
}

/// Numbers that are numbers, and words where there should be some.
fn is_sound(judged: &Judgement) {
    assert!((0.0..=1.0).contains(&judged.score), "{judged:?}");
    assert!((0.0..=1.0).contains(&judged.confidence), "{judged:?}");
    assert!(judged.novelty >= 0.0, "{judged:?}");
    for (kind, score) in &judged.kinds {
        assert!((0.0..=1.0).contains(score), "{kind}: {judged:?}");
    }
    for reason in &judged.reasons {
        assert!(!reason.adds.is_nan() && !reason.words.is_empty());
    }
}

/// A window in which all is there and nothing unusual, and one whose values are those of the input.
fn windows(input: &[u8]) -> [Window; 2] {
    let count = features().len();
    let plain = Window {
        at_ms: 0,
        values: vec![0.0; count],
        there: vec![true; count],
        missing: Vec::new(),
    };
    let bytes = || input.iter().rev().copied().chain([7]).cycle();
    let wild = Window {
        at_ms: u64::MAX,
        values: bytes()
            .take(count)
            .map(|byte| (f32::from(byte) - 128.0).powi(3))
            .collect(),
        there: bytes().take(count).map(|byte| byte & 1 == 0).collect(),
        missing: monitor::Source::ALL.to_vec(),
    };
    [plain, wild]
}

/// A file as somebody makes it who knows the format.
fn forged(how: u8, input: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    let (header, body) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    let header = match how & 8 {
        0 => fitting(header),
        _ => header.to_vec(),
    };
    let (packed, unpacked) = match how & 2 {
        0 => (body.to_vec(), CLAIMED),
        _ => (zstd::bulk::compress(body, 1).ok()?, body.len()),
    };
    let mut file = b"EGMOD\n".to_vec();
    file.extend([1 + (how >> 2 & 1), 0]);
    let length = |length: usize| (length as u32).to_le_bytes();
    file.extend(length(header.len()));
    file.extend(&header);
    file.extend(length(unpacked));
    file.extend(length(packed.len()));
    file.extend(&packed);
    file.extend(xxh3_64(&file).to_le_bytes());
    Some(file)
}

/// The header with the versions of today, and the features that it asks for by number.
fn fitting(header: &[u8]) -> Vec<u8> {
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(header) else {
        return header.to_vec();
    };
    fields.insert("features_version".to_owned(), FEATURES_VERSION.into());
    fields.insert("signals_version".to_owned(), SIGNALS_VERSION.into());
    let names = fields.get_mut("features").and_then(Value::as_array_mut);
    for name in names.into_iter().flatten() {
        let number = name.as_str().and_then(|name| name.strip_prefix('#'));
        let number = number.and_then(|number| number.parse::<u16>().ok());
        if let Some(number) = number {
            let all = features();
            *name = all[usize::from(number) % all.len()].name().into();
        }
    }
    serde_json::to_vec(&fields).unwrap()
}
