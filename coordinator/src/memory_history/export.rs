//! Writing a point out as a saved state, from which a VM can be started. Reads what is kept while others add to it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use nbd_server::Epoch;
use xxhash_rust::xxh3::xxh3_64;

use super::head::{HEAD_BYTES, Head, MemoryPoint};
use super::store::{DEVICES, RAM, Shelf, StoreError, failed};
use crate::saved_state::{DEVICE_FILE, Origin, RAM_FILE};

/// Read at once, in bytes.
const CHUNK: u64 = 4 << 20;
/// Zeros of this length become holes, in bytes.
const HOLE: usize = 64 << 10;

impl Shelf {
    /// Writes the point of an epoch of the group to `dir`, which must not be there yet. After an error it is not.
    pub(super) fn export(&self, epoch: Epoch, dir: &Path) -> Result<MemoryPoint, StoreError> {
        let (own, head) = self.find(epoch)?;
        let made = DirBuilder::new().mode(0o700).create(dir);
        made.map_err(failed("make", dir))?;
        let filled = self.fill(own, &head, dir);
        if filled.is_err()
            && let Err(error) = fs::remove_dir_all(dir)
        {
            tracing::warn!(%error, dir = %dir.display(), "an export ended half-way and can't be removed");
        }
        filled.map(|()| head.point)
    }

    fn fill(&self, own: Epoch, head: &Head, dir: &Path) -> Result<(), StoreError> {
        let view = self.history.view(own)?;
        let [ram, devices] = &self.images;
        let path = dir.join(RAM_FILE);
        let file = private(&path)?;
        let size = head.point.ram_bytes;
        file.set_len(size).map_err(failed("write", &path))?;
        let mut buffer = Vec::new();
        let mut at = 0;
        while at < size {
            let len = CHUNK.min(size - at);
            buffer.resize(usize::try_from(len).unwrap_or(0), 0);
            view.read(RAM, at, &mut buffer, |at, part| ram.read(at, part))?;
            for (number, part) in buffer.chunks(HOLE).enumerate() {
                if part.iter().any(|byte| *byte != 0) {
                    let place = at + (number * HOLE) as u64;
                    file.write_all_at(part, place)
                        .map_err(failed("write", &path))?;
                }
            }
            at += len;
        }
        buffer.resize(usize::try_from(head.point.device_bytes).unwrap_or(0), 0);
        view.read(DEVICES, HEAD_BYTES, &mut buffer, |at, part| {
            devices.read(at, part)
        })?;
        if xxh3_64(&buffer) != head.device_sum {
            return Err(StoreError::Damaged(head.point.epoch));
        }
        let path = dir.join(DEVICE_FILE);
        let written = private(&path)?.write_all(&buffer);
        written.map_err(failed("write", &path))?;
        let origin = Origin {
            epoch: head.point.epoch,
            disks: None,
            time_ms: head.point.time_ms,
            machine: head.machine.clone(),
        };
        origin.write(dir).map_err(failed("write to", dir))
    }
}

fn private(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o600).open(path);
    made.map_err(failed("make", path))
}
