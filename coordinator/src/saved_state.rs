//! The state of a VM in a directory: all of its memory (`ram`) and its devices (`device`), of one instant. With disks of the same
//! instant a guest goes on from it within a fraction of the time that a boot takes: that is how the fault matrix starts
//! thousands of guests. Nothing checks that the disks belong to it; whoever restores makes sure of that.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use qemu_glue::{
    DiskAttachment, Error, GuestRam, PageSet, Role, RuntimePlace, SourceVm, StandbyVm,
    VmDescription,
};

/// Bytes copied at once.
const CHUNK: usize = 256 << 10;

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
    std::fs::write(dir.join("device"), devices).map_err(broken)?;
    let file = File::create(dir.join("ram")).map_err(broken)?;
    file.set_len(ram.len()).map_err(broken)?;
    for_chunks(ram.len(), |offset, chunk| {
        ram.read(offset, chunk)?;
        write_data(&file, offset, chunk).map_err(broken)
    })?;
    vm.kill().await;
    Ok(())
}

/// Lets the guest go on from what [`save`] wrote to `dir`, at a QEMU of the same description.
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
    let devices = std::fs::read(dir.join("device")).map_err(broken)?;
    let mut file = File::open(dir.join("ram")).map_err(broken)?;
    let bytes = description.memory_bytes();
    let ram = GuestRam::create(&description.ram_dir, &description.name, Role::Source, bytes)?;
    for_chunks(bytes, |offset, chunk| {
        file.seek(SeekFrom::Start(offset)).map_err(broken)?;
        file.read_exact(chunk).map_err(broken)?;
        if holds_data(chunk) {
            ram.write(offset, chunk)?;
        }
        Ok(())
    })?;
    let waiting = StandbyVm::launch(description, place, disks, Arc::new(ram)).await?;
    let (vm, _) = waiting.resume_from(&devices).await?;
    Ok(vm)
}

fn for_chunks(
    bytes: u64,
    mut each: impl FnMut(u64, &mut [u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    while offset < bytes {
        let len = usize::try_from(bytes - offset).map_or(CHUNK, |left| left.min(CHUNK));
        each(offset, &mut buffer[..len])?;
        offset += len as u64;
    }
    Ok(())
}

/// Leaves zeros out: the file is as sparse as the memory was.
fn write_data(mut file: &File, offset: u64, chunk: &[u8]) -> std::io::Result<()> {
    if holds_data(chunk) {
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(chunk)?;
    }
    Ok(())
}

fn holds_data(chunk: &[u8]) -> bool {
    chunk.iter().any(|byte| *byte != 0)
}
