//! A guest that has booted once, to start many from: memory, devices and disks of one instant, its witness at work.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use coordinator::{ProtectConfig, saved_state};
use nbd_server::control::client::Client;
use qemu_glue::{DiskAttachment, RuntimePlace, SourceVm};

use super::layout::{DISKS, Layout};
use super::site::VM;
use super::{Site, Who};
use crate::cli::LabArgs;

/// The witness has then seen all of its disks.
const PASSES: u64 = 2;
const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Boots the guest of `layout` and leaves its state in `dir`.
pub(crate) fn boot_and_save(args: &LabArgs, layout: &Layout, dir: &Path) -> anyhow::Result<()> {
    let plain = Layout {
        saved: None,
        networked: false,
        small: None,
        ..layout.clone()
    };
    let mut site = Site::with(args, &plain, Vec::new())?;
    let config: ProtectConfig = crate::config_file::load(&site.path().join("vm.toml"))?;
    crate::runtime::tokio()?.block_on(run(&site, &config, dir))?;
    // Stopped in order: all that was committed is in the images.
    site.stop_gateway();
    for disk in DISKS {
        let image = format!("{disk}.img");
        copy_sparse(&site.path().join(&image), &dir.join(&image))?;
    }
    Ok(())
}

async fn run(site: &Site, config: &ProtectConfig, dir: &Path) -> anyhow::Result<()> {
    let client = Client::connect(&config.gateway).await?;
    let attached = client.attach(VM, "boot").await?;
    let disks: Vec<_> = DISKS
        .iter()
        .filter_map(|disk| {
            let export = attached.exports.get(*disk)?;
            Some(DiskAttachment::unix(
                *disk,
                config.nbd.as_str(),
                export.as_str(),
            ))
        })
        .collect();
    let place = RuntimePlace::source(config.runtime_dir.join(VM)).on(&config.host);
    let mut vm = SourceVm::launch(&config.vm, &place, &disks).await?;
    vm.resume().await?;
    let deadline = Instant::now() + BOOT_LIMIT;
    while site
        .serial(Who::Source)
        .latest()
        .is_none_or(|verdict| verdict.pass < PASSES)
    {
        if Instant::now() > deadline {
            bail!(
                "the guest's witness does not work; its serial line says:\n{}",
                site.serial(Who::Source).text()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    saved_state::save(vm, dir).await?;
    client.detach(VM, attached.generation).await?;
    Ok(())
}

/// Copies a file and leaves its holes out.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    let copy = || -> std::io::Result<()> {
        let mut source = File::open(from)?;
        let mut target = File::create(to)?;
        target.set_len(source.metadata()?.len())?;
        let mut at = 0;
        while let Some(data) = saved_state::next_data(&source, at)? {
            at = data.end;
            source.seek(SeekFrom::Start(data.start))?;
            target.seek(SeekFrom::Start(data.start))?;
            std::io::copy(&mut (&mut source).take(data.end - data.start), &mut target)?;
        }
        Ok(())
    };
    copy().with_context(|| format!("{} can't be copied to {}", from.display(), to.display()))
}
