//! Writes the disks of a backup as raw images with holes. Each is written under another name, synced, and renamed when it is complete; one that was
//! interrupted is begun anew. Every block is checked before it is written.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::format::{BLOCK, DiskOf, Located, Manifest, REGION, pieces};
use crate::read::{Regions, each, list_at, write_at};
use crate::{BackupError, Repository, Watch};

/// A disk that was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The disk.
    pub disk: String,
    /// The image.
    pub image: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes of it that are not zeros.
    pub written: u64,
}

/// Restores the disks of a backup, or those that are named, to `DISK.raw` in a directory.
///
/// # Errors
/// [`BackupError::Usage`] if an image is there already; [`BackupError::Damaged`] if a byte is not as it was.
pub fn restore(
    repository: &Repository,
    manifest: &Manifest,
    disks: &[String],
    to: &Path,
    jobs: usize,
    watch: &dyn Watch,
) -> Result<Vec<Restored>, BackupError> {
    for name in disks {
        if !manifest.disks.iter().any(|disk| disk.name == *name) {
            let there: Vec<&str> = manifest
                .disks
                .iter()
                .map(|disk| disk.name.as_str())
                .collect();
            return Err(BackupError::Usage(format!(
                "backup {} has no disk {name}; it has {}",
                manifest.id,
                there.join(", ")
            )));
        }
    }
    let wanted = |disk: &&DiskOf| disks.is_empty() || disks.contains(&disk.name);
    let wanted: Vec<&DiskOf> = manifest.disks.iter().filter(wanted).collect();
    let image = |disk: &DiskOf| to.join(format!("{}.raw", disk.name));
    // Before anything is written.
    for disk in &wanted {
        let image = image(disk);
        if image.symlink_metadata().is_ok() {
            return Err(BackupError::Usage(format!(
                "{} is there already, and nothing is overwritten; move it away, or restore to another directory",
                image.display()
            )));
        }
    }
    std::fs::create_dir_all(to).map_err(|source| failed("made", to, source))?;
    watch.begin(wanted.iter().map(|disk| disk.size).sum());
    let mut restored = Vec::new();
    for disk in wanted {
        let image = image(disk);
        let written = one(repository, &manifest.group, disk, &image, jobs, watch)?;
        restored.push(Restored {
            disk: disk.name.clone(),
            image,
            size: disk.size,
            written,
        });
    }
    Ok(restored)
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> BackupError {
    BackupError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

fn one(
    repository: &Repository,
    group: &str,
    disk: &DiskOf,
    image: &Path,
    jobs: usize,
    watch: &dyn Watch,
) -> Result<u64, BackupError> {
    let partial = image.with_extension("raw.partial");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&partial)
        .map_err(|error| failed("written", &partial, error))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(BackupError::Locked(format!(
            "another process restores to {}; wait for it to end",
            partial.display()
        )));
    }
    // What an interrupted run has left is not believed.
    let sized = file.set_len(0).and_then(|()| file.set_len(disk.size));
    sized.map_err(|error| failed("written", &partial, error))?;
    let next = AtomicUsize::new(0);
    let regions = pieces(disk.size, REGION);
    let work = || -> Result<u64, BackupError> {
        let mut lists = Regions::new(&repository.objects, group, disk);
        let mut written = 0;
        loop {
            let region = next.fetch_add(1, Ordering::Relaxed);
            if region >= regions {
                return Ok(written);
            }
            let done = fill(
                repository, group, disk, region, &mut lists, &file, &partial, watch,
            );
            if done.is_err() {
                next.store(regions, Ordering::Relaxed);
            }
            written += done?;
        }
    };
    let written = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let mut sum = 0;
        let mut first = None;
        for worker in workers {
            match worker.join() {
                Ok(Ok(bytes)) => sum += bytes,
                Ok(Err(error)) => first = first.or(Some(error)),
                Err(_) => first = first.or(Some(io::Error::other("a worker has failed").into())),
            }
        }
        first.map_or(Ok(sum), Err)
    })?;
    file.sync_all()
        .map_err(|error| failed("synced", &partial, error))?;
    // Not over one that has come meanwhile.
    let moved = rustix::fs::renameat_with(
        rustix::fs::CWD,
        &partial,
        rustix::fs::CWD,
        image,
        rustix::fs::RenameFlags::NOREPLACE,
    );
    moved.map_err(|error| failed("made", image, error.into()))?;
    let parent = image.parent().map(File::open);
    if let Some(parent) = parent {
        let synced = parent.and_then(|parent| parent.sync_all());
        synced.map_err(|error| failed("synced", image, error))?;
    }
    Ok(written)
}

#[allow(clippy::too_many_arguments, reason = "what one step of a worker needs")]
fn fill(
    repository: &Repository,
    group: &str,
    disk: &DiskOf,
    region: usize,
    lists: &mut Regions<'_>,
    file: &File,
    path: &Path,
    watch: &dyn Watch,
) -> Result<u64, BackupError> {
    if watch.stop() {
        return Err(BackupError::Stopped);
    }
    let start = region as u64 * REGION;
    let len = (disk.size - start).min(REGION);
    let mut written = 0;
    if let Some(entry) = lists.entry(region)?
        && entry.located().is_some()
    {
        let list = list_at(&repository.objects, group, &entry, pieces(len, BLOCK))?;
        let blocks: Vec<(u64, &Located)> = (0u64..)
            .zip(&list)
            .filter_map(|(number, entry)| Some((number, entry.located()?)))
            .collect();
        let wanted: Vec<&Located> = blocks.iter().map(|(_, at)| *at).collect();
        each(&repository.objects, group, &wanted, &mut |number, raw| {
            if watch.stop() {
                return Err(BackupError::Stopped);
            }
            let block = blocks.get(number).map_or(0, |(block, _)| *block);
            let at = start + block * BLOCK;
            if raw.len() as u64 != (disk.size - at).min(BLOCK) {
                let name = blocks.get(number).map(|(_, at)| at.backup.to_string());
                return Err(BackupError::damaged(
                    &name.unwrap_or_default(),
                    format!(
                        "a block of disk {} has another length than it must have",
                        disk.name
                    ),
                ));
            }
            written += raw.len() as u64;
            write_at(file, &raw, at).map_err(|error| failed("written", path, error))
        })?;
    }
    watch.done(len);
    Ok(written)
}
