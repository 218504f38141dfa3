//! Finds dirty pages by the kernel's asynchronous write protection: a userfaultfd of QEMU's address space, which the
//! preloaded shim hands out, and one `PAGEMAP_SCAN` that finds what was written and protects it again.
//!
//! Sees all writes that go through QEMU's page tables: those of the guest and of QEMU's devices, vhost in the kernel too.
//! Doesn't see another process that maps the same file.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};

use crate::dirty_pages::{DirtyTracker, TrackerKind};
use crate::error::{Error, Result};
use crate::guest_ram::GuestRam;
use crate::page_set::PageRange;
use crate::sys::write_protection::{
    WrittenRegion, enable_async_protection, register, scan_written,
};

/// Ranges per system call; more of them take another call.
const REGIONS_PER_CALL: usize = 16 * 1024;

/// The tracker.
#[derive(Debug)]
pub(crate) struct PagemapTracker {
    /// Keeps the registration alive.
    _uffd: OwnedFd,
    pagemap: File,
    areas: Vec<Area>,
    found: Vec<WrittenRegion>,
}

/// A part of the RAM file as QEMU mapped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    /// Offset of `start` in the RAM file.
    offset: u64,
}

impl PagemapTracker {
    /// Registers all areas of process `pid` that map `ram`. `uffd` must belong to that process and be fresh.
    pub(crate) fn attach(pid: u32, uffd: OwnedFd, ram: &GuestRam) -> Result<Self> {
        let failed = |what: &'static str| Error::tracker(TrackerKind::Pagemap, what);
        enable_async_protection(uffd.as_fd()).map_err(failed(
            "the kernel lacks asynchronous write protection (Linux 6.7 has it)",
        ))?;
        let identity = ram
            .identity()
            .map_err(failed("can't look at the RAM file"))?;
        let maps =
            File::open(format!("/proc/{pid}/maps")).map_err(failed("can't read QEMU's maps"))?;
        let areas =
            areas_of(BufReader::new(maps), identity).map_err(failed("can't read QEMU's maps"))?;
        if !covers(&areas, ram.len()) {
            let problem = "QEMU does not map the whole RAM file".into();
            return Err(Error::Tracker {
                kind: TrackerKind::Pagemap,
                problem,
                source: None,
            });
        }
        for area in &areas {
            register(uffd.as_fd(), area.start, area.end - area.start)
                .map_err(failed("can't register guest memory with userfaultfd"))?;
        }
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))
            .map_err(failed("can't open QEMU's pagemap"))?;
        let mut tracker = PagemapTracker {
            _uffd: uffd,
            pagemap,
            areas,
            found: vec![WrittenRegion::default(); REGIONS_PER_CALL],
        };
        // Proves that the kernel knows PAGEMAP_SCAN; the result does not matter yet.
        tracker.scan(&mut Vec::new())?;
        Ok(tracker)
    }
}

impl DirtyTracker for PagemapTracker {
    fn kind(&self) -> TrackerKind {
        TrackerKind::Pagemap
    }

    fn start(&mut self) -> Result<()> {
        self.scan(&mut Vec::new())
    }

    fn scan(&mut self, out: &mut Vec<PageRange>) -> Result<()> {
        for area in &self.areas {
            let mut at = area.start;
            while at < area.end {
                let (count, walked) = scan_written(&self.pagemap, at, area.end, &mut self.found)
                    .map_err(Error::tracker(TrackerKind::Pagemap, "PAGEMAP_SCAN failed"))?;
                out.extend(self.found.iter().take(count).map(|region| PageRange {
                    offset: region.start - area.start + area.offset,
                    len: region.end - region.start,
                }));
                if walked <= at {
                    return Err(Error::tracker(
                        TrackerKind::Pagemap,
                        "PAGEMAP_SCAN does not advance",
                    )(io::ErrorKind::InvalidData.into()));
                }
                at = walked;
            }
        }
        Ok(())
    }

    fn rescan_is_cheap(&self) -> bool {
        true
    }
}

/// The areas of `/proc/PID/maps` (proc_pid_maps(5)) that map the file with this device and inode number, by offset.
fn areas_of(maps: impl BufRead, (device, inode): (u64, u64)) -> io::Result<Vec<Area>> {
    let device = (
        u64::from(libc::major(device)),
        u64::from(libc::minor(device)),
    );
    let mut areas = Vec::new();
    for line in maps.lines() {
        areas.extend(
            parse_area(&line?)
                .filter(|(_, dev, ino)| (*dev, *ino) == (device, inode))
                .map(|(area, ..)| area),
        );
    }
    areas.sort_by_key(|area| (area.offset, area.start));
    Ok(areas)
}

/// `start-end perms offset major:minor inode path`, all but the inode in hexadecimal.
fn parse_area(line: &str) -> Option<(Area, (u64, u64), u64)> {
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    let area = Area {
        start: hex(start)?,
        end: hex(end)?,
        offset: hex(offset)?,
    };
    (area.start < area.end).then_some((area, (hex(major)?, hex(minor)?), inode))
}

/// Whether the areas, sorted by offset, hold each byte of `0..len` exactly once.
fn covers(areas: &[Area], len: u64) -> bool {
    let mut at = 0;
    for area in areas {
        if area.offset != at {
            return false;
        }
        at += area.end - area.start;
    }
    at == len
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MAPS: &str = "\
7f0000000000-7f0000100000 rw-s 00000000 00:1a 77                         /dev/shm/a b.ram (deleted)
7f0000300000-7f0000400000 rw-s 00100000 00:1a 77                         /dev/shm/a b.ram (deleted)
7f0000500000-7f0000600000 rw-s 00000000 00:1a 78                         /dev/shm/other.ram
7f0000700000-7f0000800000 rw-p 00000000 00:00 0                          [heap]
";

    #[test]
    fn finds_the_areas_of_one_file_by_its_inode() {
        let areas = areas_of(MAPS.as_bytes(), (libc::makedev(0, 0x1a), 77)).unwrap();
        assert_eq!(
            areas,
            [
                Area {
                    start: 0x7f00_0000_0000,
                    end: 0x7f00_0010_0000,
                    offset: 0
                },
                Area {
                    start: 0x7f00_0030_0000,
                    end: 0x7f00_0040_0000,
                    offset: 0x10_0000
                },
            ]
        );
        assert!(covers(&areas, 0x20_0000));
    }

    #[test]
    fn a_gap_or_an_overlap_is_not_covered() {
        let area = |start: u64, offset: u64| Area {
            start,
            end: start + 0x1000,
            offset,
        };
        assert!(!covers(&[area(0, 0)], 0x2000));
        assert!(!covers(&[area(0, 0x1000)], 0x1000));
        assert!(!covers(&[area(0, 0), area(0x8000, 0)], 0x1000));
    }
}
