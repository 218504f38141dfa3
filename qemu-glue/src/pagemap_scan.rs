//! Finds dirty pages by the kernel's asynchronous write protection: a userfaultfd of QEMU's address space, which the
//! preloaded shim hands out, and one `PAGEMAP_SCAN` that finds what was written and protects it again.
//!
//! To walk over the page tables takes 1 ms per GiB, and the guest stands still meanwhile: several threads share it.
//!
//! Sees all writes that go through QEMU's page tables: those of the guest and of QEMU's devices, vhost in the kernel too.
//! Doesn't see another process that maps the same file.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use crate::dirty_pages::{DirtyTracker, TrackerKind};
use crate::error::{Error, Result};
use crate::fault_count::FaultCount;
use crate::guest_ram::GuestRam;
use crate::page_set::PageRange;
use crate::sys::write_protection::{
    WrittenRegion, enable_async_protection, register, scan_written,
};

/// Ranges per system call; more of them take another call.
const REGIONS_PER_CALL: usize = 16 * 1024;

/// Memory below this is not worth a thread of its own: to start one takes as long as to walk over 32 MiB.
const BYTES_PER_THREAD: u64 = 128 << 20;

/// Threads that scan at the same time, at most: the guest's other neighbours want to run as well.
const MOST_THREADS: u64 = 4;

/// The tracker.
#[derive(Debug)]
pub(crate) struct PagemapTracker {
    /// Keeps the registration alive.
    _uffd: OwnedFd,
    pagemap: File,
    /// To write to what is protected takes a fault.
    faults: FaultCount,
    /// All of the memory, by offset; each for one thread. At least one.
    parts: Vec<Part>,
}

/// Page of a tmpfs that has been told to use large ones, in bytes.
const HUGE_PAGE: u64 = 2 << 20;

/// What one thread scans.
#[derive(Debug)]
struct Part {
    area: Area,
    /// Room for the answer of one system call.
    answer: Vec<WrittenRegion>,
    /// All that was found.
    found: Vec<PageRange>,
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
        let faults = FaultCount::of(pid).map_err(failed("can't open QEMU's /proc/PID/stat"))?;
        let page_size = ram
            .block_size()
            .map_err(failed("can't look at the RAM file"))?;
        let threads = thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let mut tracker = PagemapTracker {
            _uffd: uffd,
            pagemap,
            faults,
            parts: parts_of(&areas, page_size, threads),
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
        let pagemap = &self.pagemap;
        let outcome = thread::scope(|scope| {
            let mut parts = self.parts.iter_mut();
            let own = parts.next();
            let others: Vec<_> = parts
                .map(|part| scope.spawn(|| part.scan(pagemap)))
                .collect();
            let mut outcome = own.map_or(Ok(()), |part| part.scan(pagemap));
            for other in others {
                let ended = other.join();
                outcome = outcome.and(ended.unwrap_or_else(|_| Err(io::Error::other("a panic"))));
            }
            outcome
        });
        // What one part has found counts as clean in the kernel, also if another failed.
        for part in &mut self.parts {
            out.append(&mut part.found);
        }
        outcome.map_err(Error::tracker(TrackerKind::Pagemap, "PAGEMAP_SCAN failed"))
    }

    fn writes(&self) -> Option<u64> {
        self.faults.now()
    }

    fn rescan_is_cheap(&self) -> bool {
        true
    }
}

impl Part {
    /// Appends what was written to `found`.
    fn scan(&mut self, pagemap: &File) -> io::Result<()> {
        let Area { start, end, offset } = self.area;
        let mut at = start;
        while at < end {
            let (count, walked) = scan_written(pagemap, at, end, &mut self.answer)?;
            let regions = self.answer.iter().take(count);
            self.found.extend(regions.map(|region| PageRange {
                offset: region.start - start + offset,
                len: region.end - region.start,
            }));
            if walked <= at {
                return Err(io::ErrorKind::InvalidData.into());
            }
            at = walked;
        }
        Ok(())
    }
}

/// Cuts the areas so that up to `threads` parts of about the same length can be scanned at the same time. A page of
/// `page_size` bytes is never cut: the kernel can't protect half of one.
fn parts_of(areas: &[Area], page_size: u64, threads: u64) -> Vec<Part> {
    let whole: u64 = areas.iter().map(|area| area.end - area.start).sum();
    let threads = (whole / BYTES_PER_THREAD)
        .min(threads)
        .clamp(1, MOST_THREADS);
    let unit = page_size.max(HUGE_PAGE);
    let length = whole.div_ceil(threads).next_multiple_of(unit).max(unit);
    let mut parts = Vec::new();
    for area in areas {
        let mut start = area.start;
        while start < area.end {
            let end = start.saturating_add(length).min(area.end);
            parts.push(Part {
                area: Area {
                    start,
                    end,
                    offset: area.offset + (start - area.start),
                },
                answer: vec![WrittenRegion::default(); REGIONS_PER_CALL],
                found: Vec::new(),
            });
            start = end;
        }
    }
    parts
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
    use crate::page_set::PAGE_SIZE;

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
    fn parts_cover_all_and_cut_no_page() {
        let gib = 1 << 30;
        let area = |start: u64, end: u64, offset: u64| Area { start, end, offset };
        let low = area(gib, 4 * gib, 0);
        let high = area(8 * gib, 8 * gib + 5 * (gib >> 2), 3 * gib);
        for (page, threads) in [
            (4096, 1),
            (4096, 3),
            (4096, 64),
            (2 << 20, 4),
            (gib >> 2, 4),
        ] {
            let parts = parts_of(&[low, high], page, threads);
            assert!(
                parts.len() as u64 <= threads.min(MOST_THREADS) + 1,
                "{page} {threads}"
            );
            let mut offset = 0;
            for part in &parts {
                let Area { start, end, .. } = part.area;
                assert!(start < end && start.is_multiple_of(page) && end.is_multiple_of(page));
                let whole = if start < low.end { low } else { high };
                assert_eq!(part.area.offset, start - whole.start + whole.offset);
                assert_eq!(part.area.offset, offset);
                offset += end - start;
            }
            assert_eq!(offset, 17 * (gib >> 2));
        }
        // A small guest is scanned by one thread.
        assert_eq!(parts_of(&[area(0, 128 << 20, 0)], 4096, 8).len(), 1);
        assert_eq!(parts_of(&[area(0, 512 << 20, 0)], 4096, 2).len(), 2);
    }

    /// Every write to what a scan has found clean shows in the count before the next scan finds it.
    #[test]
    fn no_write_after_a_scan_goes_unnoticed() {
        const PAGES: u64 = 64;
        let dir = tempfile::tempdir().unwrap();
        let ram =
            GuestRam::create(dir.path(), "vm", crate::Role::Source, PAGES * PAGE_SIZE).unwrap();
        let uffd = crate::sys::write_protection::own_userfaultfd().unwrap();
        let mut tracker = PagemapTracker::attach(std::process::id(), uffd, &ram).unwrap();
        let scanned = |tracker: &mut PagemapTracker| {
            let mut found = Vec::new();
            tracker.scan(&mut found).unwrap();
            found
        };
        // Each page once when it was never touched, and once more when it is there.
        for page in (0..PAGES).chain(0..PAGES) {
            let offset = page * PAGE_SIZE;
            let before = tracker.writes().unwrap();
            ram.write(offset + 7, &[1, 2]).unwrap();
            assert_ne!(tracker.writes(), Some(before), "page {page}");
            let len = PAGE_SIZE;
            assert_eq!(scanned(&mut tracker), [PageRange { offset, len }]);
        }
        assert!(scanned(&mut tracker).is_empty());
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
