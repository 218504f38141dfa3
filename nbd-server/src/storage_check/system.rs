//! What the system says about the places of a configuration: links resolved, mounts and loop devices read. Whatever can't be read is left
//! out: then nothing is said about it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Mount, Place, advice, mounts};
use crate::gateway::GatewayConfig;

/// Storage as the system describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct System {
    /// All mounts.
    pub mounts: Vec<Mount>,
    /// Loop devices that are set up, with their files.
    pub loops: BTreeMap<String, PathBuf>,
}

impl System {
    /// This system now.
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            mounts: mounts::parse(&text),
            loops: loops(),
        }
    }
}

fn loops() -> BTreeMap<String, PathBuf> {
    let Ok(devices) = fs::read_dir("/sys/class/block") else {
        return BTreeMap::new();
    };
    devices
        .filter_map(|device| {
            let device = device.ok()?;
            let name = device.file_name().into_string().ok()?;
            let file = fs::read_to_string(device.path().join("loop/backing_file"));
            Some((name, PathBuf::from(file.ok()?.trim_end())))
        })
        .collect()
}

/// What is worth a word about the storage of this configuration: sentences for whoever wrote it. Opens no image.
pub fn storage_advice(config: &GatewayConfig) -> Vec<String> {
    let mut places = Vec::new();
    for group in &config.groups {
        let what = format!("the log of group '{}'", group.name);
        places.extend(place(what, &group.log, true));
        for disk in &group.disks {
            let what = format!("disk '{}' of group '{}'", disk.name, group.name);
            places.extend(place(what, &disk.image, false));
        }
    }
    for export in &config.exports {
        let what = format!("export '{}'", export.name);
        places.extend(place(what, &export.image, false));
    }
    advice(&places, &System::now())
}

fn place(what: String, path: &Path, is_log: bool) -> Option<Place> {
    // Of what a server has below nothing is seen from here.
    if crate::storage::Place::is_url(path) {
        return None;
    }
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find_map(|path| path.canonicalize().ok())?;
    let metadata = fs::metadata(&there).ok()?;
    let device = metadata.file_type().is_block_device();
    Some(Place {
        what,
        grows: !is_log && metadata.is_file() && metadata.blocks() * 512 < metadata.len(),
        device: device.then(|| name_of(&there, metadata.rdev())).flatten(),
        path: there,
        is_log,
    })
}

/// The kernel's name of a block device, which may have others in `/dev`.
fn name_of(path: &Path, number: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let link = fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link.as_deref().unwrap_or(path).file_name()?;
    name.to_str().map(str::to_owned)
}
