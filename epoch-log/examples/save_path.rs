//! What it costs a thread to save blocks to a history, in processor time: `save_path DIR [EPOCHS [BLOCKS]]` saves batches of 32 epochs with
//! so many blocks of 4 KiB each, at random places of an image of 256 MiB, in a new directory below DIR. Wall time says little on a busy
//! machine; processor time does.

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use epoch_log::Epoch;
use epoch_log::history::{Anchor, History, Options};
use epoch_log::storage::directory;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 64 << 10;
const BATCH: u64 = 32;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "/dev/shm".to_owned());
    let mut number = |default: u64| -> Result<u64, Box<dyn Error>> {
        Ok(args.next().map_or(Ok(default), |text| text.parse())?)
    };
    let (epochs, blocks) = (number(1024)?, number(256)?);
    let dir = tempfile::tempdir_in(dir)?;
    let mut random = StdRng::seed_from_u64(1);
    let image = tempfile::tempfile_in(dir.path())?;
    let mut content = vec![0; 1 << 20];
    for at in 0..BLOCKS * BLOCK / content.len() as u64 {
        random.fill_bytes(&mut content);
        image.write_all_at(&content, at * content.len() as u64)?;
    }
    let places: Vec<Vec<u64>> = (0..epochs)
        .map(|_| {
            let mut places: Vec<u64> = (0..blocks)
                .map(|_| random.random_range(0..BLOCKS))
                .collect();
            places.sort_unstable();
            places.dedup();
            places
        })
        .collect();
    let spent = save(dir.path(), &image, &places)?;
    let saved: usize = places.iter().map(Vec::len).sum();
    println!(
        "{saved} blocks saved in {epochs} epochs: {:.2} µs of the processor each",
        spent.as_secs_f64() * 1e6 / saved as f64
    );
    Ok(())
}

/// Saves these blocks of `image`, epoch by epoch. Returns the thread's processor time.
fn save(
    dir: &Path,
    image: &std::fs::File,
    places: &[Vec<u64>],
) -> Result<Duration, Box<dyn Error>> {
    let anchor = Anchor {
        log_id: [1; 16],
        applied: Epoch(0),
        committed: Epoch(0),
    };
    let (history, _) = History::open(
        directory(&dir.join("history")),
        anchor,
        Options::default(),
        0,
    )?;
    let begun = processor_time();
    let mut epoch = 0;
    for batch in places.chunks(usize::try_from(BATCH)?) {
        let mut capture = history.capture()?;
        for places in batch {
            epoch += 1;
            for place in places {
                let start = place * BLOCK;
                capture.save(0, start, start + BLOCK, |at, buffer| {
                    image.read_exact_at(buffer, at)
                })?;
            }
            capture.boundary(Epoch(epoch), epoch, true)?;
        }
        capture.finish(Epoch(epoch))?;
        history.applied(Epoch(epoch));
    }
    Ok(processor_time().saturating_sub(begun))
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
