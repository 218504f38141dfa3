//! The load profiles: the fio job files of `fio-profiles/`, built in, and what the native client does in their place.

use crate::load::{Load, Order};

/// What a profile is about, and so what is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// Requests per second.
    Requests,
    /// The time of one request.
    Latency,
    /// Bytes per second.
    Bytes,
    /// Right or wrong.
    Data,
}

/// A profile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Profile {
    /// As in options and tables; `fio-profiles/NAME.fio`.
    pub name: &'static str,
    /// A few words for the tables.
    pub title: &'static str,
    /// What is compared.
    pub about: About,
    /// Whether it writes: then a flush follows, which is timed by itself.
    pub writes: bool,
    /// Text of the job file.
    pub job: &'static str,
    /// What the native client does; none if it has nothing like it.
    pub native: Option<Native>,
}

impl Profile {
    /// The job says itself how many connections it opens.
    pub(crate) fn fixed_connections(&self) -> bool {
        self.about == About::Data
    }
}

/// A profile of the native client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Native {
    block: usize,
    depth: usize,
    read_percent: u32,
    order: Order,
    flush_every: u32,
}

impl Native {
    /// The load over a whole disk of `size` bytes.
    pub(crate) fn load(self, size: u64) -> Load {
        Load {
            block: self.block,
            depth: self.depth,
            read_percent: self.read_percent,
            order: self.order,
            flush_every: self.flush_every,
            ..Load::new(size)
        }
    }

    /// Requests in flight on a connection.
    pub(crate) fn depth(self) -> usize {
        self.depth
    }
}

const fn native(block: usize, depth: usize, read_percent: u32, order: Order) -> Option<Native> {
    Some(Native {
        block,
        depth,
        read_percent,
        order,
        flush_every: 0,
    })
}

/// One line of the table: its name, what it measures, whether it writes, and what the native client does for it.
macro_rules! profile {
    ($name:literal, $title:literal, $about:ident, $writes:literal, $native:expr) => {
        Profile {
            name: $name,
            title: $title,
            about: About::$about,
            writes: $writes,
            job: include_str!(concat!("../../../fio-profiles/", $name, ".fio")),
            native: $native,
        }
    };
}

/// All profiles, in the order of the tables.
pub(crate) const ALL: [Profile; 11] = [
    profile!(
        "read-latency",
        "4 KiB random read, one at a time",
        Latency,
        false,
        native(4096, 1, 100, Order::Random)
    ),
    profile!(
        "write-latency",
        "4 KiB random write, one at a time",
        Latency,
        true,
        native(4096, 1, 0, Order::Random)
    ),
    profile!(
        "random-read",
        "4 KiB random read",
        Requests,
        false,
        native(4096, 64, 100, Order::Random)
    ),
    profile!(
        "random-write",
        "4 KiB random write",
        Requests,
        true,
        native(4096, 64, 0, Order::Random)
    ),
    profile!(
        "random-mixed",
        "4 KiB random, 70 % reads",
        Requests,
        true,
        native(4096, 64, 70, Order::Random)
    ),
    profile!(
        "sequential-read",
        "256 KiB sequential read",
        Bytes,
        false,
        native(256 << 10, 16, 100, Order::Sequential)
    ),
    profile!(
        "sequential-write",
        "256 KiB sequential write",
        Bytes,
        true,
        native(256 << 10, 16, 0, Order::Sequential)
    ),
    profile!(
        "database",
        "16 KiB database mix with flushes",
        Requests,
        true,
        Some(Native {
            block: 16 << 10,
            depth: 16,
            read_percent: 70,
            order: Order::Random,
            flush_every: 16,
        })
    ),
    profile!("boot", "boot of a VM", Requests, true, None),
    profile!("metadata", "storm of small files", Requests, true, None),
    profile!(
        "verify",
        "written with checksums, read back and checked",
        Data,
        true,
        None
    ),
];

/// The profile of that name.
pub(crate) fn find(name: &str) -> Option<Profile> {
    ALL.into_iter().find(|profile| profile.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_job_file_is_the_one_it_is_named_after() {
        for profile in ALL {
            assert!(
                profile.job.contains(&format!("\n[{}]\n", profile.name)),
                "{}",
                profile.name
            );
            assert!(find(profile.name).is_some());
        }
    }
}
