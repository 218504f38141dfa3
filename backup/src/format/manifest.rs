//! A manifest: what a backup is of, and where its lists are. JSON, so that people can read it; its last key is the SHA-256 of all others,
//! as they are written without spaces and in order of their names.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::list::{Entry, Located};
use super::{Digest, FormatError, Id, MOST_DISK, MOST_DISKS, SPAN, name, pieces, wrong};

/// Version of all that [`crate::format`] describes.
pub const FORMAT: u64 = 1;
/// Longest manifest in bytes.
pub const MOST_MANIFEST: u64 = 64 << 20;
const CHECKSUM: &str = "sha256";

/// A backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its name.
    pub id: Id,
    /// The group at the gateway.
    pub group: String,
    /// The epoch that it is of.
    pub epoch: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
    /// When the backup was complete, in milliseconds since 1970.
    pub made_ms: u64,
    /// The backup that it was compared with; none: all was read.
    pub parent: Option<Id>,
    /// Bytes of the disks that were read for it.
    pub read: u64,
    /// Bytes that it brought along, as they are stored.
    pub stored: u64,
    /// The disks.
    pub disks: Vec<DiskOf>,
}

/// A disk in a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOf {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// A list of lists for each 64 GiB.
    pub spans: Vec<Entry>,
}

impl Manifest {
    /// Size of all disks in bytes.
    pub fn size(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size).sum()
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: u64,
    id: String,
    group: String,
    epoch: u64,
    time_ms: u64,
    made_ms: u64,
    parent: Option<String>,
    read: u64,
    stored: u64,
    disks: Vec<DiskText>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskText {
    name: String,
    size: u64,
    /// `null` is zeros.
    spans: Vec<Option<EntryText>>,
}

/// Where something is, as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryText {
    backup: String,
    pack: u32,
    offset: u32,
    stored: u32,
    sha256: String,
}

/// The text of a manifest.
///
/// # Errors
/// If JSON can't say it.
pub fn write(manifest: &Manifest) -> Result<Vec<u8>, FormatError> {
    let entry = |entry: &Entry| {
        entry.located().map(|located| EntryText {
            backup: located.backup.to_string(),
            pack: located.pack,
            offset: located.offset,
            stored: located.stored,
            sha256: located.digest.to_string(),
        })
    };
    let disks = manifest.disks.iter().map(|disk| DiskText {
        name: disk.name.clone(),
        size: disk.size,
        spans: disk.spans.iter().map(entry).collect(),
    });
    let text = Text {
        format: FORMAT,
        id: manifest.id.to_string(),
        group: manifest.group.clone(),
        epoch: manifest.epoch,
        time_ms: manifest.time_ms,
        made_ms: manifest.made_ms,
        parent: manifest.parent.as_ref().map(ToString::to_string),
        read: manifest.read,
        stored: manifest.stored,
        disks: disks.collect(),
    };
    let json = |error: serde_json::Error| FormatError(error.to_string());
    let mut value = serde_json::to_value(text).map_err(json)?;
    let digest = Digest::of(&serde_json::to_vec(&value).map_err(json)?);
    if let Some(fields) = value.as_object_mut() {
        fields.insert(CHECKSUM.to_owned(), digest.to_string().into());
    }
    serde_json::to_vec(&value).map_err(json)
}

/// Reads a manifest and checks all that can be checked without the packs.
///
/// # Errors
/// If it is none, is damaged, or is of a newer version.
pub fn read(bytes: &[u8]) -> Result<Manifest, FormatError> {
    if bytes.len() as u64 > MOST_MANIFEST {
        return wrong("it is too long for a manifest");
    }
    let json = |error: serde_json::Error| FormatError(format!("it is no manifest: {error}"));
    let mut value: Value = serde_json::from_slice(bytes).map_err(json)?;
    if let Some(format) = value.get("format").and_then(Value::as_u64)
        && format != FORMAT
    {
        return wrong(format!(
            "it is of version {format} of the format, and this program knows {FORMAT}; take a newer epochgate"
        ));
    }
    let fields = value.as_object_mut();
    let said = fields.and_then(|fields| fields.remove(CHECKSUM));
    let said = said
        .as_ref()
        .and_then(Value::as_str)
        .and_then(Digest::parse);
    let is = Digest::of(&serde_json::to_vec(&value).map_err(json)?);
    if said != Some(is) {
        return wrong("its checksum does not fit");
    }
    let text: Text = serde_json::from_value(value).map_err(json)?;
    name::check("a group", &text.group)?;
    if text.disks.is_empty() || text.disks.len() > MOST_DISKS {
        return wrong(format!("it has {} disks", text.disks.len()));
    }
    let mut names = BTreeSet::new();
    let mut disks = Vec::with_capacity(text.disks.len());
    for disk in text.disks {
        name::check("a disk", &disk.name)?;
        if !names.insert(disk.name.clone()) {
            return wrong(format!("it has the disk {} twice", disk.name));
        }
        disks.push(disk_of(disk)?);
    }
    Ok(Manifest {
        id: Id::new(&text.id)?,
        group: text.group,
        epoch: text.epoch,
        time_ms: text.time_ms,
        made_ms: text.made_ms,
        parent: text.parent.as_deref().map(Id::new).transpose()?,
        read: text.read,
        stored: text.stored,
        disks,
    })
}

fn disk_of(disk: DiskText) -> Result<DiskOf, FormatError> {
    if disk.size > MOST_DISK || pieces(disk.size, SPAN) != disk.spans.len() {
        return wrong(format!(
            "its disk {} has {} bytes and {} lists, which do not fit together",
            disk.name,
            disk.size,
            disk.spans.len()
        ));
    }
    let spans = disk.spans.into_iter().map(|span| {
        let Some(text) = span else {
            return Ok(Entry::Zeros);
        };
        let Some(digest) = Digest::parse(&text.sha256) else {
            return wrong("it has a checksum that is none");
        };
        let located = Located {
            backup: Id::new(&text.backup)?,
            pack: text.pack,
            offset: text.offset,
            stored: text.stored,
            digest,
        };
        match located.fits() {
            true => Ok(Entry::At(located)),
            false => wrong("it has a list at a place that can't be"),
        }
    });
    Ok(DiskOf {
        name: disk.name,
        size: disk.size,
        spans: spans.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        let located = Located {
            backup: Id::new("b1").unwrap(),
            pack: 3,
            offset: 9,
            stored: 77,
            digest: Digest::of(b"x"),
        };
        Manifest {
            id: Id::new("b2").unwrap(),
            group: "vm1".to_owned(),
            epoch: u64::MAX,
            time_ms: 5,
            made_ms: 6,
            parent: Some(Id::new("b1").unwrap()),
            read: 7,
            stored: 8,
            disks: vec![
                DiskOf {
                    name: "root".to_owned(),
                    size: SPAN + 1,
                    spans: vec![Entry::At(located), Entry::Zeros],
                },
                DiskOf {
                    name: "none".to_owned(),
                    size: 0,
                    spans: Vec::new(),
                },
            ],
        }
    }

    /// A manifest whose checksum fits, with `from` replaced.
    fn forged(from: &str, to: &str) -> Result<Manifest, FormatError> {
        let text = String::from_utf8(write(&manifest()).unwrap()).unwrap();
        assert!(text.contains(from), "{text}");
        let mut value: Value = serde_json::from_str(&text.replacen(from, to, 1)).unwrap();
        let fields = value.as_object_mut().unwrap();
        fields.remove(CHECKSUM);
        let digest = Digest::of(&serde_json::to_vec(&value).unwrap());
        let fields = value.as_object_mut().unwrap();
        fields.insert(CHECKSUM.to_owned(), digest.to_string().into());
        read(&serde_json::to_vec(&value).unwrap())
    }

    #[test]
    fn manifests_come_back() {
        assert_eq!(read(&write(&manifest()).unwrap()), Ok(manifest()));
        assert_eq!(forged("root", "boot").unwrap().disks[0].name, "boot");
    }

    #[test]
    fn manifests_that_mean_harm_are_refused() {
        for (from, to) in [
            ("\"root\"", "\"../root\""),
            ("\"root\"", "\"/etc/passwd\""),
            ("\"root\"", "\"none\""),
            ("\"root\"", "\"\""),
            ("\"vm1\"", "\"..\""),
            ("\"b1\"", "\"../../b1\""),
            ("\"b2\"", "\"a/b\""),
            ("\"size\":0", "\"size\":18446744073709551615"),
            ("\"size\":0", "\"size\":1"),
            ("\"size\":0", "\"size\":-1"),
            ("\"offset\":9", "\"offset\":4294967295"),
            ("\"stored\":77", "\"stored\":4294967295"),
            ("\"stored\":77", "\"stored\":0"),
            ("\"format\":1", "\"format\":2"),
            ("\"format\":1", "\"format\":1,\"more\":1"),
        ] {
            assert!(forged(from, to).is_err(), "{from} {to}");
        }
        let newer = forged("\"format\":1", "\"format\":2").unwrap_err();
        assert!(newer.to_string().contains("newer epochgate"), "{newer}");
        let deep = "[".repeat(1 << 20);
        assert!(read(deep.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn every_altered_byte_is_found(at: usize, to: u8) {
            let mut bytes = write(&manifest()).unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(other) = read(&bytes) {
                prop_assert_eq!(other, manifest());
            }
        }

        #[test]
        fn anything_is_taken_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }
    }
}
