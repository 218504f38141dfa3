//! Settings, by the same names on the kernel command line (`witness.rate=400`) and as options (`--rate 400`).
//!
//! | name | meaning | default |
//! |---|---|---|
//! | `disks` | paths, separated by commas | /dev/vda, /dev/vdb, ... as far as they exist |
//! | `blocks` | at most so many 4 KiB blocks of each disk are used | 4096 (16 MiB) |
//! | `writers` | threads, each with one request in flight | 2 |
//! | `rate` | operations a second of all writers together; 0: as many as possible | 400 |
//! | `mem_mib` | size of the table in memory, MiB; 0: none | 8 |
//! | `dirty` | pages of that table written with each operation | 4 |
//! | `seed` | fixes the choice of operations; 0: a new choice each run | 0 |
//! | `ops` | stop after so many operations and verify all once more; 0: never | 0 |
//! | `report_ms` | time between two reports, milliseconds | 200 |
//! | `service` | TCP port of its service on the network, the next one belongs to it; 0: none | 0 |
//! | `beacon` | address and port that a UDP packet is sent to every 2 ms | none |
//! | `fill_mib` | MiB of memory that are touched at the start, and no more | 0 |
//! | `load_mib` | instead of its usual work, a load for measurements that writes so many MiB of memory and the first disk; see `load`; 0: none | 0 |

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A setting that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such setting.
    #[error(
        "there is no setting {0:?}; known are disks, blocks, writers, rate, mem_mib, dirty, seed, ops, report_ms, service, beacon, fill_mib, load_mib"
    )]
    Unknown(String),
    /// A number was expected.
    #[error("{name} needs a whole number, at least {least}, not {value:?}")]
    Number {
        /// The setting.
        name: String,
        /// What was given.
        value: String,
        /// The smallest that is allowed.
        least: u64,
    },
    /// An address was expected.
    #[error("beacon needs an address and a port, as in 10.78.0.1:9000, not {0:?}")]
    Address(String),
    /// A port was expected.
    #[error("service needs a port from 0 to 65534, not {0:?}")]
    Port(String),
    /// An option without a value.
    #[error("{0} needs a value")]
    NoValue(String),
    /// The kernel command line can't be read.
    #[error("/proc/cmdline can't be read; mount /proc, or give the settings as options")]
    Cmdline(#[source] std::io::Error),
}

/// The settings; the table above says what they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Config {
    pub disks: Vec<PathBuf>,
    pub blocks: usize,
    pub writers: usize,
    pub rate: u64,
    pub mem_mib: usize,
    pub dirty: usize,
    pub seed: u64,
    pub ops: u64,
    pub report_ms: u64,
    pub service: u16,
    pub beacon: Option<SocketAddr>,
    pub fill_mib: usize,
    pub load_mib: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            disks: Vec::new(),
            blocks: 4096,
            writers: 2,
            rate: 400,
            mem_mib: 8,
            dirty: 4,
            seed: 0,
            ops: 0,
            report_ms: 200,
            service: 0,
            beacon: None,
            fill_mib: 0,
            load_mib: 0,
        }
    }
}

impl Config {
    /// From options if there are any, else from the kernel command line.
    ///
    /// # Errors
    /// If a setting is unknown or not usable.
    pub fn load(args: impl Iterator<Item = String>) -> Result<Self, ConfigError> {
        let mut args = args.peekable();
        if args.peek().is_some() {
            return Self::from_options(args);
        }
        let cmdline = std::fs::read_to_string("/proc/cmdline").map_err(ConfigError::Cmdline)?;
        Self::from_cmdline(&cmdline)
    }

    fn from_options(mut args: impl Iterator<Item = String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        while let Some(option) = args.next() {
            let name = option
                .strip_prefix("--")
                .ok_or_else(|| ConfigError::Unknown(option.clone()))?;
            let value = args
                .next()
                .ok_or_else(|| ConfigError::NoValue(option.clone()))?;
            config.set(&name.replace('-', "_"), &value)?;
        }
        Ok(config)
    }

    fn from_cmdline(cmdline: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for word in cmdline.split_whitespace() {
            if let Some(setting) = word.strip_prefix("witness.") {
                let (name, value) = setting
                    .split_once('=')
                    .ok_or_else(|| ConfigError::NoValue(word.to_owned()))?;
                config.set(name, value)?;
            }
        }
        Ok(config)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let number = |least: u64| {
            let invalid = || ConfigError::Number {
                name: name.to_owned(),
                value: value.to_owned(),
                least,
            };
            value
                .parse::<u64>()
                .ok()
                .filter(|&number| number >= least)
                .ok_or_else(invalid)
        };
        let size =
            |least: u64| number(least).map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        match name {
            "disks" => self.disks = value.split(',').map(PathBuf::from).collect(),
            "blocks" => self.blocks = size(1)?,
            "writers" => self.writers = size(1)?,
            "rate" => self.rate = number(0)?,
            "mem_mib" => self.mem_mib = size(0)?,
            "dirty" => self.dirty = size(0)?,
            "seed" => self.seed = number(0)?,
            "ops" => self.ops = number(0)?,
            "fill_mib" => self.fill_mib = size(0)?,
            "load_mib" => self.load_mib = size(0)?,
            "report_ms" => self.report_ms = number(1)?,
            "service" => {
                let port = value.parse().ok().filter(|&port| port < u16::MAX);
                self.service = port.ok_or_else(|| ConfigError::Port(value.to_owned()))?;
            }
            "beacon" => {
                let address = value.parse();
                self.beacon = Some(address.map_err(|_| ConfigError::Address(value.to_owned()))?);
            }
            _ => return Err(ConfigError::Unknown(name.to_owned())),
        }
        Ok(())
    }

    /// The disks to use: those that were named, else all virtio disks up to the first gap.
    pub fn disk_paths(&self) -> Vec<PathBuf> {
        if !self.disks.is_empty() {
            return self.disks.clone();
        }
        ('a'..='z')
            .map(|letter| PathBuf::from(format!("/dev/vd{letter}")))
            .take_while(|path| Path::exists(path))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sources_have_the_same_names() {
        let options = ["--blocks", "64", "--mem-mib", "0", "--disks", "a,b"].map(str::to_owned);
        let from_options = Config::from_options(options.into_iter()).ok();
        let from_cmdline = Config::from_cmdline(
            "quiet witness.blocks=64 witness.mem_mib=0 x=1 witness.disks=a,b\n",
        )
        .ok();
        assert!(from_options.is_some());
        assert_eq!(from_options, from_cmdline);
    }

    #[test]
    fn a_wrong_setting_is_refused() {
        for cmdline in [
            "witness.block=1",
            "witness.blocks=0",
            "witness.rate=fast",
            "witness.ops",
            "witness.seed=-1",
        ] {
            assert!(Config::from_cmdline(cmdline).is_err(), "{cmdline}");
        }
    }
}
