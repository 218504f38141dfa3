//! What the server of a session serves: disks in memory, under any name.

use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use nbd_server::Epoch;
use nbd_server::export::{
    BlockExtent, ChangedContext, Cutter, Export, ExportDirectory, ExportInfo, ExportListing,
    HeldExtent, IoError, OpenRefused, Since,
};

/// Size of each disk in bytes.
pub const SIZE: u64 = 256 << 10;

/// A disk in memory. Some of its calls say that they would block, so that workers have something to do.
struct Memory {
    plan: u8,
    data: Mutex<Vec<u8>>,
}

impl Memory {
    fn would_block(&self, offset: u64) -> bool {
        self.plan & 1 == 1 && offset.is_multiple_of(3)
    }

    fn fail(&self, offset: u64) -> Result<(), IoError> {
        if self.plan & 2 == 2 && offset.is_multiple_of(7) {
            return Err(IoError::Io);
        }
        Ok(())
    }

    fn with<T>(&self, offset: u64, len: usize, act: impl FnOnce(&mut [u8]) -> T) -> T {
        let mut data = self.data.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        act(&mut data[start..start + len])
    }
}

impl Export for Memory {
    fn info(&self) -> ExportInfo {
        ExportInfo {
            read_only: self.plan & 4 == 4,
            can_fast_zero: self.plan & 8 == 0,
            ..ExportInfo::full(SIZE)
        }
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, IoError> {
        if self.would_block(offset) {
            return Ok(false);
        }
        self.read(offset, buf).map(|()| true)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.fail(offset)?;
        self.with(offset, buf.len(), |data| buf.copy_from_slice(data));
        Ok(())
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Result<bool, IoError> {
        if self.would_block(offset) {
            return Ok(false);
        }
        self.write(offset, Bytes::copy_from_slice(data), fua)
            .map(|()| true)
    }

    fn write(&self, offset: u64, data: Bytes, _fua: bool) -> Result<(), IoError> {
        self.fail(offset)?;
        self.with(offset, data.len(), |disk| disk.copy_from_slice(&data));
        Ok(())
    }

    fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.write_zeroes(offset, len, true, false, fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        _: bool,
        _: bool,
        _: bool,
    ) -> Result<(), IoError> {
        self.fail(offset)?;
        self.with(offset, usize::try_from(len).unwrap(), |disk| disk.fill(0));
        Ok(())
    }

    fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<BlockExtent>, IoError> {
        self.fail(offset)?;
        let step = status_step(offset);
        let count = len.div_ceil(step).min(max as u64);
        let extent = |index: u64| match (offset + index) % 3 {
            0 => BlockExtent::hole(step),
            _ => BlockExtent::data(step),
        };
        Ok((0..count).map(extent).collect())
    }

    fn held_status(&self, _: u64, len: u64, _: usize) -> Result<Vec<HeldExtent>, IoError> {
        let held = self.plan & 16 == 16;
        Ok(vec![HeldExtent { len: len + 1, held }])
    }
}

/// Says that every other stretch has changed, with overlaps, and beyond what was asked for.
struct Alternating;

impl Since for Alternating {
    fn changed(&self, _: Option<Epoch>, offset: u64, len: u64) -> Result<Vec<(u64, u64)>, IoError> {
        if offset.is_multiple_of(11) {
            return Err(IoError::Io);
        }
        let step = status_step(offset);
        let stretch = |index| {
            (
                offset + 2 * index * step,
                offset + (2 * index + 1) * step + index % 2,
            )
        };
        Ok((0..=len.div_ceil(2 * step)).map(stretch).collect())
    }
}

/// How long the extents are that a status has from `offset` on.
pub fn status_step(offset: u64) -> u64 {
    1 + offset % 9000
}

/// Every name is an export: its length is the plan.
pub struct Directory;

impl ExportDirectory for Directory {
    fn list(&self) -> Vec<ExportListing> {
        Vec::new()
    }

    fn describe(&self, name: &str) -> Result<ExportInfo, OpenRefused> {
        Ok(memory(name).info())
    }

    fn changed_contexts(&self, _: &str, queries: &[String], _: &Cutter) -> Vec<ChangedContext> {
        let known = |query: &&String| query.ends_with(['1', '2']);
        let context = |name: &String| ChangedContext {
            name: name.clone(),
            since: Arc::new(Alternating),
        };
        queries.iter().filter(known).map(context).collect()
    }

    fn open(&self, name: &str, _: Cutter) -> Result<Arc<dyn Export>, OpenRefused> {
        Ok(memory(name))
    }
}

/// One disk per plan. What an earlier input wrote there makes no difference: nobody looks at the content.
fn memory(name: &str) -> Arc<Memory> {
    const PLANS: usize = 32;
    static DISKS: [OnceLock<Arc<Memory>>; PLANS] = [const { OnceLock::new() }; PLANS];
    let plan = name.len() % PLANS;
    let disk = DISKS[plan].get_or_init(|| {
        Arc::new(Memory {
            plan: u8::try_from(plan).unwrap(),
            data: Mutex::new(vec![0x55; usize::try_from(SIZE).unwrap()]),
        })
    });
    Arc::clone(disk)
}
