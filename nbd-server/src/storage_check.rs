//! What the guarantees need of the storage below, as far as it can be seen from here: a flush that reaches the disk, a lock that others
//! respect, errors only where something is broken, and content that survives a restart. It refuses nothing; what can't be seen from here
//! (the export of an NFS server, a write cache that lies) is in `docs/guarantees.md`.
//!
//! Pure: what the system says is gathered in `system.rs`, and read from text in `mounts.rs`.

mod mounts;
mod system;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use mounts::Mount;
pub use system::{System, storage_advice};

/// File systems that lie in memory.
const IN_MEMORY: [&str; 3] = ["tmpfs", "ramfs", "devtmpfs"];
/// Block devices that lie in memory, by the beginning of their names.
const DEVICES_IN_MEMORY: [&str; 2] = ["zram", "ram"];
/// File systems through loop devices, one in the other, that are looked through.
const DEPTH: usize = 4;

/// Something of the gateway's that lies on storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is, for people: `the log of group 'vm1'`.
    pub what: String,
    /// Its path without links. Where it is yet to be made, that of the directory above.
    pub path: PathBuf,
    /// The kernel's name of the block device that it is.
    pub device: Option<String>,
    /// An image file that takes more space when it is written.
    pub grows: bool,
    /// An epoch log.
    pub is_log: bool,
}

/// What is wrong with some storage. Ordered as it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Concern {
    InMemory,
    NoBarriers,
    VolatileOverlay,
    NoStrictSync,
    Soft,
    LocalLocks,
    NfsExport,
    Overlay,
    Fuse,
}

impl Concern {
    const fn said(self) -> &'static str {
        match self {
            Self::InMemory => {
                "lies in memory: all of it is gone when this host restarts; put it on a disk"
            }
            Self::NoBarriers => {
                "flushes do not reach the disk: a power cut loses what was acknowledged, and tears epochs; mount it without nobarrier \
                 and barrier=0"
            }
            Self::VolatileOverlay => {
                "the overlay is mounted volatile and ignores flushes: a crash loses what was acknowledged; mount it without that"
            }
            Self::NoStrictSync => {
                "with nostrictsync a flush is not passed on to the server: its crash loses what was acknowledged; mount it without that"
            }
            Self::Soft => {
                "with soft a server that is slow looks like a failed disk: commits and writes fail instead of waiting; mount it with hard"
            }
            Self::LocalLocks => {
                "locks are not passed on to the server: a gateway on another host could open the same images and logs; mount it without \
                 nolock and local_lock"
            }
            Self::NfsExport => {
                "a flush is worth what the server makes of it, which can't be seen from here: it must export with sync, not async"
            }
            Self::Overlay => {
                "an overlay is often the layer of a container, which goes with it; put it on a volume"
            }
            Self::Fuse => {
                "whether a flush reaches a disk is up to the program behind FUSE, and can't be seen from here: make sure of it"
            }
        }
    }
}

/// What is worth a word about these places, each with what to do: the same about several is said once.
pub fn advice(places: &[Place], system: &System) -> Vec<String> {
    let mut concerns: BTreeMap<(Concern, String), Vec<&str>> = BTreeMap::new();
    for place in places {
        for (concern, on) in of_place(place, system) {
            concerns.entry((concern, on)).or_default().push(&place.what);
        }
    }
    let mut advice: Vec<String> = concerns
        .into_iter()
        .map(|((concern, on), what)| format!("{} ({on}): {}", list(&what), concern.said()))
        .collect();
    advice.extend(shared_space(places, system));
    advice
}

fn of_place(place: &Place, system: &System) -> Vec<(Concern, String)> {
    match &place.device {
        Some(device) => of_device(device, system, DEPTH),
        None => of_path(&place.path, system, DEPTH),
    }
}

fn of_path(path: &std::path::Path, system: &System, depth: usize) -> Vec<(Concern, String)> {
    let Some(mount) = mounts::holding(&system.mounts, path) else {
        return Vec::new();
    };
    let on = format!("{} on {}", mount.fs_type, mount.point.display());
    let mut found: Vec<_> = of_mount(mount)
        .into_iter()
        .map(|concern| (concern, on.clone()))
        .collect();
    if let Some(device) = mount.device() {
        found.extend(of_device(device, system, depth));
    }
    found
}

fn of_mount(mount: &Mount) -> Vec<Concern> {
    let fs = mount.fs_type.as_str();
    let mut concerns = Vec::new();
    let mut when = |concern, is: bool| {
        if is {
            concerns.push(concern);
        }
    };
    when(Concern::InMemory, IN_MEMORY.contains(&fs));
    let barriers = matches!(fs, "ext2" | "ext3" | "ext4" | "xfs" | "btrfs" | "reiserfs");
    when(
        Concern::NoBarriers,
        barriers && (mount.has("nobarrier") || mount.has("barrier=0") || mount.has("barrier=none")),
    );
    when(
        Concern::VolatileOverlay,
        fs == "overlay" && mount.has("volatile"),
    );
    when(Concern::Overlay, fs == "overlay");
    let cifs = matches!(fs, "cifs" | "smb3");
    when(Concern::NoStrictSync, cifs && mount.has("nostrictsync"));
    let nfs = matches!(fs, "nfs" | "nfs4");
    when(
        Concern::Soft,
        (nfs || cifs)
            && (mount.has("soft") || mount.has("softerr"))
            && !(cifs && mount.has("hard")),
    );
    when(
        Concern::LocalLocks,
        nfs && ["nolock", "local_lock=all", "local_lock=flock"]
            .iter()
            .any(|option| mount.has(option)),
    );
    when(Concern::NfsExport, nfs);
    when(
        Concern::Fuse,
        fs == "fuse" || fs == "fuseblk" || fs.starts_with("fuse."),
    );
    concerns
}

fn of_device(device: &str, system: &System, depth: usize) -> Vec<(Concern, String)> {
    let in_memory = |name: &&str| {
        let rest = device.strip_prefix(*name);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    if DEVICES_IN_MEMORY.iter().any(in_memory) {
        return vec![(Concern::InMemory, format!("/dev/{device}"))];
    }
    match system.loops.get(device) {
        Some(file) if depth > 0 => of_path(file, system, depth - 1)
            .into_iter()
            .map(|(concern, on)| {
                (
                    concern,
                    format!("/dev/{device}, {} in {on}", file.display()),
                )
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Logs that share their space with images that grow.
fn shared_space(places: &[Place], system: &System) -> Vec<String> {
    let mount = |place: &Place| mounts::holding(&system.mounts, &place.path);
    let mut advice = Vec::new();
    for log in places.iter().filter(|place| place.is_log) {
        let Some(on) = mount(log).filter(|on| !IN_MEMORY.contains(&on.fs_type.as_str())) else {
            continue;
        };
        let with_it: Vec<&str> = places
            .iter()
            .filter(|place| place.grows && place.device.is_none())
            .filter(|place| mount(place).is_some_and(|other| other.number == on.number))
            .map(|place| place.what.as_str())
            .collect();
        if !with_it.is_empty() {
            advice.push(format!(
                "{} and {} share the file system on {}, and the image is sparse: when it has filled the space, nothing can be \
                 committed; put the log elsewhere, or give the image all its space (fallocate)",
                log.what,
                list(&with_it),
                on.point.display()
            ));
        }
    }
    advice
}

/// The first few of a list.
fn list(what: &[&str]) -> String {
    const MOST: usize = 4;
    let mut text = what
        .iter()
        .take(MOST)
        .copied()
        .collect::<Vec<_>>()
        .join(", ");
    if what.len() > MOST {
        text += &format!(" and {} more", what.len() - MOST);
    }
    text
}

#[cfg(test)]
mod tests;
