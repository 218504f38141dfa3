//! Reads and writes past the page cache (`O_DIRECT`): through aligned memory, in whole blocks. It knows offsets and bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// What buffers are aligned to: a page, which satisfies any storage.
const MEMORY: usize = 4096;
/// The blocks that storage may want requests in, smallest first.
const BLOCKS: [u32; 4] = [512, 1024, 2048, 4096];
/// Most that is copied at once: larger requests take several rounds, rather than as much memory again.
const ROUND: usize = 1 << 20;

/// How to reach a file that was opened with `O_DIRECT`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direct {
    block: u32,
}

impl Direct {
    /// Finds out by reading which blocks the storage under `file` takes.
    ///
    /// # Errors
    /// What the system said to the largest of them.
    pub fn probe(file: &File) -> io::Result<Self> {
        let mut refused = io::Error::from_raw_os_error(libc::EINVAL);
        for block in BLOCKS {
            let mut memory = Aligned::new(block as usize)?;
            match file.read_at(memory.bytes(block as usize)?, 0) {
                Ok(_) => return Ok(Self { block }),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    /// For storage that takes blocks of so many bytes.
    pub fn with_block(block: u32) -> Self {
        Self { block }
    }

    /// Offsets and lengths are multiples of it, in bytes.
    pub fn block(self) -> u32 {
        self.block
    }

    /// Fills `buf` from `offset`; both whole blocks.
    pub fn read(self, file: &File, mut offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut memory = Aligned::new(buf.len().min(ROUND))?;
        for part in buf.chunks_mut(ROUND) {
            let aligned = memory.bytes(part.len())?;
            file.read_exact_at(aligned, offset)?;
            part.copy_from_slice(aligned);
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Writes `data` at `offset`; both whole blocks.
    pub fn write(self, file: &File, mut offset: u64, data: &[u8]) -> io::Result<()> {
        let mut memory = Aligned::new(data.len().min(ROUND))?;
        for part in data.chunks(ROUND) {
            let aligned = memory.bytes(part.len())?;
            aligned.copy_from_slice(part);
            file.write_all_at(aligned, offset)?;
            offset += part.len() as u64;
        }
        Ok(())
    }
}

/// Memory that begins at a multiple of [`MEMORY`].
struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: usize) -> io::Result<Self> {
        let memory = vec![0; len + MEMORY];
        let start = memory.as_ptr().align_offset(MEMORY);
        if start > MEMORY {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Self { memory, start })
    }

    /// The first `len` bytes.
    fn bytes(&mut self, len: usize) -> io::Result<&mut [u8]> {
        let range = self.start..self.start + len;
        let bytes = self.memory.get_mut(range);
        bytes.ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}
