//! Opens what a group's configuration names, wherever it lies: images and the directory of the log.

use std::sync::Arc;

use epoch_log::storage::Storage;

use super::image::Image;
use super::open::{GroupConfig, OpenError};
use crate::storage;

/// The directory of the log.
pub(super) fn open_log(config: &GroupConfig) -> Result<Arc<dyn Storage>, OpenError> {
    storage::open_log(&config.log).map_err(|source| OpenError::Log {
        group: config.name.clone(),
        source,
    })
}

/// The images, in the order of the disks.
pub(super) fn open_images(config: &GroupConfig) -> Result<Vec<Image>, OpenError> {
    let mut images: Vec<Image> = Vec::new();
    for disk in &config.disks {
        let image = storage::open_image(&disk.image, disk.read_only).map_err(|source| {
            OpenError::Image {
                group: config.name.clone(),
                disk: disk.name.clone(),
                source,
            }
        })?;
        if images
            .iter()
            .any(|other| other.identity() == image.identity())
        {
            let what = format!(
                "two disks have the same image {}; give each its own",
                disk.image.display()
            );
            return Err(OpenError::Config {
                group: config.name.clone(),
                what,
            });
        }
        images.push(image);
    }
    Ok(images)
}
