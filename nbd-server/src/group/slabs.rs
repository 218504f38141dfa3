//! Fixed pieces of memory that small writes are packed into. They come back to a pool, so that an epoch finds warm pages instead of asking
//! the system for new ones. Knows nothing of what they hold.
//!
//! Whole slabs are mapped one by one and not taken from the heap: what a budget gives back is then given back to the system, where an
//! allocator would keep several times the budget in its arenas.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// A slab that is not the first of its overlay, in bytes.
const WHOLE: usize = 256 << 10;
/// The first slab of an overlay: most epochs of a VM that rests need no more.
const FIRST: usize = 16 << 10;

/// Whole slabs that wait for use.
#[derive(Debug)]
pub struct SlabPool {
    idle: Mutex<Vec<MmapMut>>,
    max_idle: usize,
}

impl SlabPool {
    /// A pool that keeps at most so many bytes that nobody uses.
    pub fn new(max_idle_bytes: u64) -> Self {
        let slabs = max_idle_bytes / WHOLE as u64;
        Self {
            idle: Mutex::default(),
            max_idle: usize::try_from(slabs).unwrap_or(usize::MAX),
        }
    }

    /// A slab of at least `at_least` bytes; `first`: a small one will do if that fits. It holds anything.
    pub fn take(self: &Arc<Self>, first: bool, at_least: usize) -> Slab {
        if first && at_least <= FIRST {
            return Slab::from_heap(FIRST);
        }
        if at_least > WHOLE {
            return Slab::from_heap(at_least);
        }
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match idle.map_or_else(|| MmapMut::map_anon(WHOLE), Ok) {
            Ok(memory) => Slab {
                memory: Memory::Mapped(memory),
                pool: Some(Arc::clone(self)),
            },
            // The system maps no more; the heap may still have it.
            Err(_) => Slab::from_heap(WHOLE),
        }
    }
}

/// One slab; dropping it gives it back.
#[derive(Debug)]
pub struct Slab {
    memory: Memory,
    pool: Option<Arc<SlabPool>>,
}

#[derive(Debug)]
enum Memory {
    Mapped(MmapMut),
    Heap(Box<[u8]>),
}

impl Slab {
    fn from_heap(len: usize) -> Self {
        Self {
            memory: Memory::Heap(vec![0; len].into_boxed_slice()),
            pool: None,
        }
    }
}

impl Deref for Slab {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            Memory::Mapped(memory) => memory,
            Memory::Heap(memory) => memory,
        }
    }
}

impl DerefMut for Slab {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Mapped(memory) => memory,
            Memory::Heap(memory) => memory,
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        let memory = std::mem::replace(&mut self.memory, Memory::Heap(Box::default()));
        if let (Some(pool), Memory::Mapped(memory)) = (&self.pool, memory) {
            let mut idle = pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < pool.max_idle {
                idle.push(memory);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_slabs_come_back_and_others_do_not() {
        let pool = Arc::new(SlabPool::new(8 * WHOLE as u64));
        let idle = || {
            pool.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len()
        };
        let slabs: Vec<_> = (0..8 + 5).map(|_| pool.take(false, 4096)).collect();
        assert!(slabs.iter().all(|slab| slab.len() == WHOLE));
        drop(slabs);
        assert_eq!(idle(), 8);
        let small = pool.take(true, 4096);
        assert_eq!((small.len(), idle()), (FIRST, 8));
        drop((
            small,
            pool.take(true, FIRST + 1),
            pool.take(false, WHOLE + 1),
        ));
        assert_eq!(idle(), 8);
    }
}
