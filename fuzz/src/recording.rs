//! Recordings of the monitor: what is taken is written and read as the same again, all else is refused with a reason.
//!
//! Input: a byte that says what the rest is. An even one: a file as it is. An odd one: the length of a header (2 bytes), the header, and
//! a body, which become a file with a right checksum; bit 1: the body is compressed first, bit 2: its version is another one.

use monitor::Recording;
use xxhash_rust::xxh3::xxh3_64;

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
    match Recording::from_bytes(&file) {
        Ok(recording) => {
            let again = Recording::from_bytes(&recording.to_bytes().unwrap()).unwrap();
            assert_eq!(again, recording);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A file as somebody makes it who knows the format.
fn forged(how: u8, input: &[u8]) -> Option<Vec<u8>> {
    let (length, rest) = input.split_first_chunk::<2>()?;
    let (header, body) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    let packed = match how & 2 {
        0 => body.to_vec(),
        _ => zstd::bulk::compress(body, 1).ok()?,
    };
    let mut file = b"EGREC\n".to_vec();
    file.extend([1 + (how >> 2 & 1), 0]);
    for part in [header, &packed] {
        file.extend((part.len() as u32).to_le_bytes());
        file.extend(part);
    }
    file.extend(xxh3_64(&file).to_le_bytes());
    Some(file)
}
