//! What is particular to a block device: its sectors, which requests to the device itself must keep to, and BLKDISCARD, for which no
//! library has a safe call: hence the `unsafe` one here. It knows nothing of exports.

use std::fs::File;
use std::io;
use std::ops::Range;

use rustix::fs::ioctl_blksszget;
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Setter, opcode};

/// `BLKDISCARD` (linux/include/uapi/linux/fs.h): takes offset and length in bytes.
const DISCARD: Opcode = opcode::none(0x12, 119);

/// A block device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    sector: u32,
}

impl Device {
    /// The device that `file` is.
    ///
    /// # Errors
    /// As ioctl(2), also for what is none.
    pub fn of(file: &File) -> io::Result<Self> {
        let sector = ioctl_blksszget(file)?.max(1);
        Ok(Self { sector })
    }

    /// Bytes of a logical sector: discards, zeroes and requests past the page cache consist of such.
    pub fn sector(self) -> u32 {
        self.sector
    }

    /// Cuts a range into what lies before its first whole sector, all whole sectors, and what lies behind. Each may be empty.
    pub fn split(self, offset: u64, len: u64) -> [Range<u64>; 3] {
        let sector = u64::from(self.sector);
        let end = offset.saturating_add(len);
        let first = offset
            .checked_next_multiple_of(sector)
            .unwrap_or(end)
            .min(end);
        let last = (end - end % sector).max(first);
        [offset..first, first..last, last..end]
    }

    /// Gives the whole sectors of a range back. What is read there afterwards is anything. Where the device has no use for that, nothing
    /// happens.
    ///
    /// # Errors
    /// When the device failed.
    pub fn discard(self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        let [_, whole, _] = self.split(offset, len);
        if whole.is_empty() {
            return Ok(());
        }
        let range = [whole.start, whole.end - whole.start];
        loop {
            // SAFETY: BLKDISCARD reads two 64-bit numbers, which is what `range` is, and writes nothing to this process.
            let done = unsafe { ioctl::ioctl(file, Setter::<DISCARD, [u64; 2]>::new(range)) };
            match done {
                Err(Errno::INTR) => {}
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_whole_sectors() {
        let device = Device { sector: 512 };
        assert_eq!(device.split(512, 1024), [512..512, 512..1536, 1536..1536]);
        assert_eq!(device.split(500, 1100), [500..512, 512..1536, 1536..1600]);
        assert_eq!(device.split(513, 510), [513..1023, 1023..1023, 1023..1023]);
        assert_eq!(device.split(513, 511), [513..1024, 1024..1024, 1024..1024]);
        assert_eq!(device.split(7, 0), [7..7, 7..7, 7..7]);
    }
}
