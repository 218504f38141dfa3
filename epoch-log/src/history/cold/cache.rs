//! What was read of cold runs a short while ago, in chunks: a copy of a disk asks for a few KiB at a time, and a store takes as long for
//! these as for a megabyte. Knows no store.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::stub::Objects;

/// Read at once, in bytes, where objects are a multiple of it; else whole objects are, so no chunk lies in two.
const CHUNK: u64 = 1 << 20;
/// Chunks that are kept for those who ask next.
const KEPT: usize = 64;

/// One chunk. Whoever asks for it first fetches it; the others wait for that.
#[derive(Debug, Default)]
struct Slot {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    content: Option<Arc<Vec<u8>>>,
    /// When and why it could not be fetched last.
    failed: Option<(Instant, io::ErrorKind, String)>,
}

/// Chunks by run and number, each with when it was asked for last.
#[derive(Debug, Default)]
struct Chunks {
    slots: HashMap<(u64, u64), (Arc<Slot>, u64)>,
    clock: u64,
}

/// The cache of one history.
#[derive(Debug, Default)]
pub struct Cache {
    chunks: Mutex<Chunks>,
}

impl Cache {
    /// Fills `buffer` with what a run holds from `offset` on. `fetch` fills a buffer from an offset of the run, within one object.
    pub fn read(
        &self,
        objects: &Objects,
        offset: u64,
        buffer: &mut [u8],
        fetch: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        let each = chunk_len(objects);
        while !rest.is_empty() {
            let chunk = at / each;
            let begin = chunk * each;
            let content = self.chunk(objects.number, chunk, |content| {
                let size = each.min(objects.len.saturating_sub(begin));
                content.resize(usize::try_from(size).unwrap_or(0), 0);
                fetch(begin, content)
            })?;
            let from = usize::try_from(at - begin).unwrap_or(usize::MAX);
            let found = content.get(from..).unwrap_or_default();
            let (now, later) = rest.split_at_mut(found.len().min(rest.len()));
            if now.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            now.copy_from_slice(found.get(..now.len()).unwrap_or_default());
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    fn chunk(
        &self,
        number: u64,
        chunk: u64,
        fetch: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<Arc<Vec<u8>>> {
        let asked = Instant::now();
        let slot = self.slot(number, chunk);
        let mut state = slot.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = &state.content {
            return Ok(Arc::clone(content));
        }
        // Somebody has just waited for it in vain, while this one waited for that: once is enough.
        if let Some((when, kind, why)) = &state.failed
            && *when >= asked
        {
            return Err(io::Error::new(*kind, why.clone()));
        }
        let mut content = Vec::new();
        match fetch(&mut content) {
            Ok(()) => {
                let content = Arc::new(content);
                state.content = Some(Arc::clone(&content));
                Ok(content)
            }
            Err(error) => {
                state.failed = Some((Instant::now(), error.kind(), error.to_string()));
                Err(error)
            }
        }
    }

    fn slot(&self, number: u64, chunk: u64) -> Arc<Slot> {
        let mut chunks = self.lock();
        chunks.clock += 1;
        let now = chunks.clock;
        let (slot, asked) = chunks.slots.entry((number, chunk)).or_default();
        *asked = now;
        let slot = Arc::clone(slot);
        while chunks.slots.len() > KEPT {
            let oldest = chunks.slots.iter().min_by_key(|(_, (_, asked))| *asked);
            let Some(oldest) = oldest.map(|(key, _)| *key) else {
                break;
            };
            chunks.slots.remove(&oldest);
        }
        slot
    }

    /// Drops what is kept of a range of a run.
    pub fn forget(&self, objects: &Objects, offset: u64, len: u64) {
        let each = chunk_len(objects);
        let (first, end) = (offset / each, offset.saturating_add(len).div_ceil(each));
        self.lock()
            .slots
            .retain(|(run, chunk), _| *run != objects.number || !(first..end).contains(chunk));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Chunks> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn chunk_len(objects: &Objects) -> u64 {
    if objects.part_len.is_multiple_of(CHUNK) {
        CHUNK
    } else {
        objects.part_len
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn objects(number: u64, len: u64) -> Objects {
        Objects {
            number,
            token: 1,
            len,
            part_len: 16 * CHUNK,
            tail: len - 1,
            sum: 0,
        }
    }

    fn byte(at: u64) -> u8 {
        u8::try_from(at % 251).unwrap()
    }

    #[test]
    fn what_is_near_is_read_once_and_what_is_kept_is_bounded() {
        let (cache, asked) = (Cache::default(), AtomicUsize::new(0));
        let len = 100 * CHUNK + 5;
        let run = objects(7, len);
        let fetch = |from: u64, buffer: &mut [u8]| {
            asked.fetch_add(1, Ordering::Relaxed);
            assert!(buffer.len() as u64 <= CHUNK && from + buffer.len() as u64 <= len);
            (from..)
                .zip(buffer)
                .for_each(|(at, place)| *place = byte(at));
            Ok(())
        };
        let read = |offset: u64, len_of: usize| {
            let mut buffer = vec![0; len_of];
            cache.read(&run, offset, &mut buffer, fetch).unwrap();
            assert!(
                (offset..)
                    .zip(&buffer)
                    .all(|(at, found)| *found == byte(at))
            );
        };
        for at in (0..CHUNK).step_by(4096) {
            read(at, 4096);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        read(CHUNK - 3, 6);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        read(len - 5, 5);
        cache.forget(&run, CHUNK, 1);
        read(CHUNK, 1);
        assert_eq!(asked.load(Ordering::Relaxed), 4);
        for chunk in 0..100 {
            read(chunk * CHUNK, 1);
        }
        assert_eq!(cache.lock().slots.len(), KEPT);
        let beyond = cache.read(&run, len - 1, &mut [0; 2], fetch);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn those_who_waited_for_what_can_not_be_had_do_not_ask_again() {
        let (cache, asked) = (Cache::default(), AtomicUsize::new(0));
        let began = std::sync::Barrier::new(2);
        let fetch = |_: u64, _: &mut [u8]| {
            asked.fetch_add(1, Ordering::Relaxed);
            began.wait();
            Err(io::Error::from(io::ErrorKind::TimedOut))
        };
        let read = || {
            cache
                .read(&objects(1, CHUNK), 0, &mut [0; 8], fetch)
                .unwrap_err()
                .kind()
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(read);
            let slot = cache.slot(1, 0);
            while slot.state.try_lock().is_ok() {
                std::thread::yield_now();
            }
            let second = scope.spawn(read);
            while Arc::strong_count(&slot) < 4 {
                std::thread::yield_now();
            }
            began.wait();
            assert_eq!(first.join().unwrap(), io::ErrorKind::TimedOut);
            assert_eq!(second.join().unwrap(), io::ErrorKind::TimedOut);
        });
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
