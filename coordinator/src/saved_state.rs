//! The state of a VM in a directory: all of its memory (`ram`) and its devices (`device`), of one instant. With disks of the same
//! instant a guest goes on from it within a fraction of the time that a boot takes: that is how the fault matrix starts
//! thousands of guests. Nothing checks that the disks belong to it; whoever restores makes sure of that.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use qemu_glue::{
    DiskAttachment, Error, GuestRam, PageSet, Role, RuntimePlace, SourceVm, StandbyVm,
    VmDescription,
};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes copied at once.
const CHUNK: usize = 64 << 10;

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
    std::fs::write(dir.join("device"), devices.into_vec()).map_err(broken)?;
    let file = File::create(dir.join("ram")).map_err(broken)?;
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
    let file = File::open(dir.join("ram")).map_err(broken)?;
    let bytes = description.memory_bytes();
    let ram = GuestRam::create(&description.ram_dir, &description.name, Role::Source, bytes)?;
    let mut from = 0;
    while let Some(data) = next_data(&file, from).map_err(broken)? {
        from = data.end;
        for_chunks(data, |offset, chunk| {
            file.read_exact_at(chunk, offset).map_err(broken)?;
            ram.write(offset, chunk)
        })?;
    }
    let waiting = StandbyVm::launch(description, place, disks, Arc::new(ram)).await?;
    let (vm, _) = waiting.resume_from(&devices).await?;
    Ok(vm)
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
