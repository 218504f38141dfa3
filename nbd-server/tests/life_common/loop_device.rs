//! A real block device: a loop device over a file. It is there as long as the value, and its file with it.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device.
pub struct LoopDevice {
    dir: tempfile::TempDir,
    pub path: PathBuf,
}

fn losetup(arguments: &[&str]) -> Result<String, String> {
    // Tools for administrators are not on everyone's PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new("losetup")
        .args(arguments)
        .env("PATH", path)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

impl LoopDevice {
    /// A device of `size` bytes with sectors of `sector` bytes.
    pub fn new(size: u64, sector: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backing");
        std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        let (file, sector) = (file.to_str().unwrap(), sector.to_string());
        let device = losetup(&["--find", "--show", "--sector-size", &sector, file]);
        let device = device.unwrap_or_else(|error| {
            panic!(
                "this test needs a loop device, so it needs root, /dev/loop-control and losetup (package mount): {error}"
            )
        });
        let path = PathBuf::from(device);
        Self { dir, path }
    }

    /// The file that holds what is on the device, once that was flushed.
    pub fn backing(&self) -> PathBuf {
        self.dir.path().join("backing")
    }

    /// Another size, as `lvextend` gives it to a volume.
    pub fn resize(&self, size: u64) {
        let file = std::fs::File::options().write(true).open(self.backing());
        file.unwrap().set_len(size).unwrap();
        losetup(&["--set-capacity", text(&self.path)]).unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It goes for good when the last who has it open leaves it.
        if let Err(error) = losetup(&["--detach", text(&self.path)]) {
            eprintln!("{} stays: {error}", self.path.display());
        }
    }
}
