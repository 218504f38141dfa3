//! What is read from a place with backups: manifests, packs, lists. Anything is taken without a panic and within bounds; what is let through is as
//! it was written, and leads nowhere else.
//!
//! Input: a byte that chooses what it is, and whether the checksum is made to fit; then the bytes.

use backup::format::list::{decode, encode};
use backup::format::pack::{self, END, MOST_PACK, RECORD};
use backup::format::{Digest, Entry, MOST_DISK, SPAN, manifest, name, pieces};

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&what, bytes)) = data.split_first() else {
        return;
    };
    match what {
        b'm' => a_manifest(bytes),
        b'M' => a_manifest(&with_checksum(bytes)),
        b'p' => a_pack(bytes),
        b'P' => a_pack(&with_end(bytes)),
        b'l' => {
            // The count is not in the list itself.
            if let Some((&[low, high], list)) = bytes.split_first_chunk::<2>() {
                a_list(list, u16::from_le_bytes([low, high]).into());
            }
        }
        _ => {}
    }
}

fn a_manifest(bytes: &[u8]) {
    let manifest = match manifest::read(bytes) {
        Ok(manifest) => manifest,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(name::check("a group", &manifest.group).is_ok());
    assert!(!manifest.disks.is_empty());
    for disk in &manifest.disks {
        assert!(!disk.name.contains('/') && disk.name != "..", "{disk:?}");
        assert!(disk.size <= MOST_DISK);
        assert_eq!(disk.spans.len(), pieces(disk.size, SPAN));
        disk.spans.iter().for_each(fits);
    }
    let again = manifest::write(&manifest).unwrap();
    assert_eq!(manifest::read(&again), Ok(manifest));
}

fn fits(entry: &Entry) {
    if let Some(at) = entry.located() {
        assert!(at.stored > 0);
        assert!(u64::from(at.offset) + u64::from(at.stored) <= MOST_PACK);
        assert!(!at.backup.as_str().contains('/'));
    }
}

fn a_list(bytes: &[u8], count: usize) {
    match decode(bytes, count) {
        Ok(list) => {
            assert_eq!(list.len(), count);
            list.iter().for_each(fits);
            assert_eq!(decode(&encode(&list).unwrap(), count), Ok(list));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn a_pack(bytes: &[u8]) {
    match pack::check(bytes) {
        Ok(records) => {
            let blocks: u64 = records.iter().map(|record| u64::from(record.stored)).sum();
            let rest = records.len() * RECORD + END;
            assert_eq!(blocks + rest as u64, bytes.len() as u64);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A manifest whose checksum is right, whatever else is in it.
fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(bytes) else {
        return bytes.to_vec();
    };
    let Some(fields) = value.as_object_mut() else {
        return bytes.to_vec();
    };
    fields.remove("sha256");
    let digest = Digest::of(&serde_json::to_vec(&value).unwrap());
    let fields = value.as_object_mut().unwrap();
    fields.insert("sha256".to_owned(), digest.to_string().into());
    serde_json::to_vec(&value).unwrap()
}

/// A pack whose table, the last bytes of the input, has the right checksum: the first byte says how many records it has.
fn with_end(bytes: &[u8]) -> Vec<u8> {
    let Some((&count, rest)) = bytes.split_first() else {
        return Vec::new();
    };
    let table = rest.len().saturating_sub(usize::from(count) * RECORD);
    let digest = Digest::of(&rest[table..]);
    let mut pack = rest.to_vec();
    pack.extend(u32::from(count).to_le_bytes());
    pack.extend(0u32.to_le_bytes());
    pack.extend(digest.0);
    pack.extend(b"EGPACK01");
    pack
}
