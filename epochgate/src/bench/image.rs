//! Disks with a known content, in a directory that goes away.

use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, ensure};

use super::machine::is_tmpfs;
use super::proc;
use crate::load;

/// A disk with version 0 of its content everywhere; it is in the page cache afterwards, and on storage.
pub(crate) fn make_image(image: &Path, size: u64) -> anyhow::Result<()> {
    let mut file = std::fs::File::create(image)
        .with_context(|| format!("{} can't be made", image.display()))?;
    let mut chunk = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < size {
        let len = usize::try_from(size - offset).map_or(chunk.len(), |left| left.min(chunk.len()));
        let Some(part) = chunk.get_mut(..len) else {
            break;
        };
        load::fill_content(part, offset, 0);
        file.write_all(part)
            .with_context(|| format!("{} can't be written", image.display()))?;
        offset += len as u64;
    }
    file.sync_all()?;
    Ok(())
}

/// Brings a disk into the page cache. Kernels that reclaim idle memory by themselves take it out within seconds, and
/// whichever server comes first then would pay for that.
pub(crate) fn warm(image: &Path) -> anyhow::Result<()> {
    let failed = || format!("{} can't be read", image.display());
    let mut file = std::fs::File::open(image).with_context(failed)?;
    let mut chunk = vec![0; 1 << 20];
    while file.read(&mut chunk).with_context(failed)? > 0 {}
    Ok(())
}

/// A directory of its own for the disks, in `dir` or where temporary files are.
pub(crate) fn scratch(dir: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    let builder = builder.prefix("epochgate-bench-");
    match dir {
        Some(dir) => builder
            .tempdir_in(dir)
            .with_context(|| format!("{} can't be used for the disks", dir.display())),
        None => builder.tempdir().context("no directory for the disks"),
    }
}

/// What still fits into `dir`, in bytes. Of a tmpfs it is what memory there is, as it may be larger than that.
pub(crate) fn room(dir: &Path) -> anyhow::Result<u64> {
    let context = || format!("{} can't be asked for its room", dir.display());
    let space = rustix::fs::statvfs(dir).with_context(context)?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    Ok(match is_tmpfs(dir) {
        true => free.min(proc::memory_available()?),
        false => free,
    })
}

/// An error that says what to do if less than `bytes` fit into `dir`.
pub(crate) fn ensure_room(dir: &Path, bytes: u64) -> anyhow::Result<()> {
    let (room, mib) = (room(dir)?, 1 << 20);
    ensure!(
        room >= bytes,
        "{} has room for {} MiB, and {} MiB will be needed: take another --dir, or make it shorter",
        dir.display(),
        room / mib,
        bytes / mib
    );
    Ok(())
}
