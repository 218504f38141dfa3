//! What must be equal on source and standby so that one can continue the other's guest. Plain values.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::arguments::DISK_DEVICE;
use crate::description::{Accelerator, DiskAttachment, VmDescription};

/// The parts of a VM that its device state depends on, by name. Compare those of source and standby before relying on
/// the standby.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(BTreeMap<String, String>);

impl Fingerprint {
    pub(crate) fn new(
        description: &VmDescription,
        disks: &[DiskAttachment],
        accelerator: Accelerator,
        qemu_version: &str,
    ) -> Self {
        let disk = |d: &DiskAttachment| {
            if d.read_only {
                format!("{} (read-only)", d.id)
            } else {
                d.id.clone()
            }
        };
        let entries = [
            ("QEMU version", qemu_version.to_owned()),
            ("accelerator", accelerator.to_string()),
            ("machine", description.machine.clone()),
            ("memory_mib", description.memory_mib.to_string()),
            ("cpus", description.cpus.to_string()),
            (
                "disks",
                disks.iter().map(disk).collect::<Vec<_>>().join(", "),
            ),
            // Another release of Epochgate may choose another one.
            ("disk device", DISK_DEVICE.to_owned()),
            ("kernel", content(description.kernel.as_deref())),
            ("initrd", content(description.initrd.as_deref())),
            ("append", description.append.clone().unwrap_or_default()),
            ("firmware", content(description.firmware.as_deref())),
            ("extra_args", description.extra_args.join(" ")),
        ];
        Fingerprint(
            entries
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        )
    }

    /// Version of QEMU.
    pub fn qemu_version(&self) -> &str {
        self.0.get("QEMU version").map_or("unknown", String::as_str)
    }

    /// One sentence for each difference, empty if there is none. `self` is the source's.
    pub fn differences(&self, standby: &Fingerprint) -> Vec<String> {
        let mut keys: Vec<&String> = self.0.keys().chain(standby.0.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let value = |side: &Fingerprint, key: &str| match side.0.get(key) {
            Some(text) if !text.is_empty() => format!("\"{text}\""),
            _ => "nothing".to_owned(),
        };
        keys.into_iter()
            .filter(|key| self.0.get(*key) != standby.0.get(*key))
            .map(|key| {
                format!(
                    "{key}: the source has {}, the standby has {}",
                    value(self, key),
                    value(standby, key)
                )
            })
            .collect()
    }
}

/// A file counts by its content: its place may differ from host to host.
fn content(file: Option<&Path>) -> String {
    match file.map(fs::read) {
        None => String::new(),
        Some(Ok(bytes)) => format!("{} bytes, xxh3 {:016x}", bytes.len(), xxh3_64(&bytes)),
        Some(Err(error)) => format!("unreadable ({error})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_readable_and_only_what_differs() {
        let mut description = VmDescription::new("vm", 256);
        let disks = [DiskAttachment::unix("root", "/a.sock", "g/root@1")];
        let source = Fingerprint::new(&description, &disks, Accelerator::Tcg, "7.2.22");
        let other_export = [DiskAttachment::unix("root", "/b.sock", "g/root@2")];
        assert_eq!(
            source,
            Fingerprint::new(&description, &other_export, Accelerator::Tcg, "7.2.22")
        );
        description.cpus = 2;
        description.append = Some("quiet".into());
        let standby = Fingerprint::new(&description, &disks, Accelerator::Tcg, "7.2.22");
        assert_eq!(
            source.differences(&standby),
            [
                "append: the source has nothing, the standby has \"quiet\"",
                "cpus: the source has \"1\", the standby has \"2\"",
            ]
        );
    }
}
