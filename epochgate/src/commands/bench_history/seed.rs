//! Makes a long history: a group in this process, every write of which is committed as an epoch of its own.

use anyhow::Context;
use bytes::Bytes;
use indicatif::ProgressBar;
use nbd_server::export::{Cutter, Export};
use nbd_server::group::{Group, GroupConfig};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::bench::interrupt;
use crate::bench::output::styled;
use crate::load;

const BLOCK: usize = 4096;

/// Gives the group of `config` `epochs` epochs, each with one block at a random place of its disk. The content stays what it is, so that
/// those who load it later can check it.
pub(super) fn seed(config: &GroupConfig, disk: &str, epochs: u64, size: u64) -> anyhow::Result<()> {
    let group = Group::open(config, &mut |_| {})?;
    let export = group
        .attach(disk, None, Cutter::inert())
        .context("the group has no such disk")??;
    let bar = styled(ProgressBar::new(epochs)).with_message("epochs");
    let mut random = StdRng::seed_from_u64(3);
    let mut block = vec![0; BLOCK];
    for number in 0..epochs {
        if number % 1000 == 0 {
            interrupt::check()?;
            bar.set_position(number);
        }
        let offset = random.random_range(0..size / BLOCK as u64) * BLOCK as u64;
        load::fill_content(&mut block, offset, 0);
        export.write(offset, Bytes::copy_from_slice(&block), false)?;
        export.flush()?;
    }
    drop(export);
    group.stop();
    bar.finish_and_clear();
    Ok(())
}
