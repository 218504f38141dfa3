//! What gathers of the payload of a batch. Knows no files.

/// The memory stays from batch to batch: to get new memory from the kernel costs more than what is done with it. It grows to the largest batch
/// and no further.
#[derive(Debug, Default)]
pub struct Payload {
    bytes: Vec<u8>,
    filled: usize,
}

impl Payload {
    /// Room for `len` bytes behind what is there. It holds anything.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.filled + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes.get_mut(self.filled..end).unwrap_or_default()
    }

    /// The first `len` bytes of the room were filled: they belong to it.
    pub fn grow(&mut self, len: usize) {
        self.filled = self.bytes.len().min(self.filled + len);
    }

    /// What is there.
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(..self.filled).unwrap_or_default()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Nothing is there. The memory stays.
    pub fn clear(&mut self) {
        self.filled = 0;
    }
}
