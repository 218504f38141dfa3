//! The state of a VM in a directory: all of its memory (`ram`) and its devices (`device`), of one instant. With disks of the same
//! instant a guest goes on from it within a fraction of the time that a boot takes: that is how the fault matrix starts
//! thousands of guests, and how a VM goes back in time with its memory. A third file, `origin.json`, says which disks belong to it
//! ([`Origin`]); where it is missing, whoever restores makes sure of that.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use nbd_server::control::api::GroupStatus;
use nbd_server::{Epoch, Generation};
use qemu_glue::Fingerprint;
use qemu_glue::{
    DiskAttachment, Error, GuestRam, PageSet, RuntimePlace, SourceVm, StandbyVm, VmDescription,
};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// The file of all memory.
pub const RAM_FILE: &str = "ram";
/// The file of the device state.
pub const DEVICE_FILE: &str = "device";
/// The file that says which disks belong to them.
const ORIGIN_FILE: &str = "origin.json";

/// Bytes copied at once.
const CHUNK: usize = 64 << 10;

/// Where a saved state comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The epoch in which the guest was like that.
    pub epoch: Epoch,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
    /// Where the disks that belong to it are; none while they have not been set back.
    pub disks: Option<DisksAt>,
    /// What a QEMU must be like to go on from it.
    pub machine: Fingerprint,
}

/// The state of a group whose disks belong to a memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksAt {
    /// The group.
    pub group: String,
    /// Its newest committed epoch.
    pub epoch: Epoch,
    /// Its generation: whoever attaches raises it.
    pub generation: Generation,
}

impl Origin {
    /// Reads it from the directory of a saved state. None: it says nothing.
    ///
    /// # Errors
    /// The system's reason, or that it can't be understood.
    pub fn read(dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(dir.join(ORIGIN_FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it to the directory of a saved state.
    ///
    /// # Errors
    /// The system's reason.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        std::fs::write(dir.join(ORIGIN_FILE), serde_json::to_vec(self)?)
    }

    /// Whether the disks of `group` are those that belong to it.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(&self, group: &GroupStatus) -> Result<(), String> {
        let Some(disks) = &self.disks else {
            return Err(format!(
                "it is of epoch {}, and no disks were set back for it: write it with `epochgate rewind --with-memory`",
                self.epoch
            ));
        };
        let now = DisksAt {
            group: group.name.clone(),
            epoch: group.committed,
            generation: group.generation,
        };
        if *disks == now {
            return Ok(());
        }
        Err(format!(
            "it belongs to {} as it was set back for it (epoch {}, generation {}), and the disks are those of {} at epoch {}, generation {}: \
             somebody has used them since; rewind again",
            disks.group, disks.epoch, disks.generation, now.group, now.epoch, now.generation
        ))
    }
}

/// Stops the guest for good and writes its state to `dir`. Its disk requests are all answered then.
///
/// # Errors
/// QEMU's or the system's reason.
pub async fn save(mut vm: SourceVm, dir: &Path) -> Result<(), Error> {
    vm.start_tracking().await?;
    let ram = Arc::clone(vm.ram());
    let devices = vm.stop().await?.save(&mut PageSet::default()).await?;
    let broken = |source| Error::File {
        action: "write the saved state in",
        path: dir.to_owned(),
        source,
    };
    std::fs::write(dir.join(DEVICE_FILE), devices.into_vec()).map_err(broken)?;
    let file = File::create(dir.join(RAM_FILE)).map_err(broken)?;
    file.set_len(ram.len()).map_err(broken)?;
    for_chunks(0..ram.len(), |offset, chunk| {
        ram.read(offset, chunk)?;
        // Leaves zeros out: the file is as sparse as the memory was.
        if chunk.iter().any(|byte| *byte != 0) {
            file.write_all_at(chunk, offset).map_err(broken)?;
        }
        Ok(())
    })?;
    vm.kill().await;
    Ok(())
}

/// Lets the guest go on from a saved state in `dir`, at a QEMU of the same description.
///
/// # Errors
/// QEMU's or the system's reason.
pub async fn restore(
    description: &VmDescription,
    place: &RuntimePlace,
    disks: &[DiskAttachment],
    dir: &Path,
) -> Result<SourceVm, Error> {
    let broken = |source| Error::File {
        action: "read the saved state in",
        path: dir.to_owned(),
        source,
    };
    let devices = std::fs::read(dir.join(DEVICE_FILE)).map_err(broken)?;
    let file = File::open(dir.join(RAM_FILE)).map_err(broken)?;
    let origin = Origin::read(dir).map_err(broken)?;
    let bytes = description.memory_bytes();
    let held = file.metadata().map_err(broken)?.len();
    if held != bytes {
        return Err(other_machine(
            description,
            format!("it has {} MiB of memory", held >> 20),
        ));
    }
    let ram = GuestRam::create(&description.ram_dir, &description.name, place.role, bytes)?;
    let mut from = 0;
    while let Some(data) = next_data(&file, from).map_err(broken)? {
        from = data.end;
        for_chunks(data, |offset, chunk| {
            file.read_exact_at(chunk, offset).map_err(broken)?;
            ram.write(offset, chunk)
        })?;
    }
    let waiting = StandbyVm::launch(description, place, disks, Arc::new(ram)).await?;
    if let Some(origin) = origin {
        let differences = origin.machine.differences(waiting.fingerprint());
        if !differences.is_empty() {
            return Err(other_machine(description, differences.join("; ")));
        }
    }
    let (vm, _) = waiting.resume_from(&devices).await?;
    Ok(vm)
}

fn other_machine(description: &VmDescription, difference: String) -> Error {
    Error::Description {
        vm: description.name.clone(),
        problem: format!(
            "the saved state is of another machine (the source is where it was saved): {difference}"
        ),
    }
}

/// The next range of a file, at `from` or behind it, that is not a hole.
///
/// # Errors
/// The system's reason.
pub fn next_data(file: &File, from: u64) -> io::Result<Option<Range<u64>>> {
    let start = match seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    Ok(Some(start..end))
}

fn for_chunks(
    range: Range<u64>,
    mut each: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = range.start;
    while offset < range.end {
        let len = usize::try_from(range.end - offset).map_or(CHUNK, |left| left.min(CHUNK));
        each(offset, &mut buffer[..len])?;
        offset += len as u64;
    }
    Ok(())
}
