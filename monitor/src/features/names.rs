//! The list of features: which there are, what they are made of, and how to say what one tells.

use std::sync::OnceLock;

use super::channels::{CHANNELS, Channel, Depth};
use crate::signals::{Signal, Source};

/// What is taken of a channel; the table is at the head of [`crate::features`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stat {
    /// See the table.
    Level,
    /// See the table.
    Change,
    /// See the table.
    Slope,
    /// See the table.
    Spread,
    /// See the table.
    Calm,
    /// See the table.
    Recent,
}

impl Stat {
    /// As in names of features.
    pub fn name(self) -> &'static str {
        match self {
            Stat::Level => "level",
            Stat::Change => "change",
            Stat::Slope => "slope",
            Stat::Spread => "spread",
            Stat::Calm => "calm",
            Stat::Recent => "recent",
        }
    }
}

/// What a feature is made of.
#[derive(Debug, Clone, Copy)]
enum Origin {
    Channel(usize, Stat),
    There(Source),
}

/// One feature.
#[derive(Debug, Clone)]
pub struct Feature {
    name: String,
    origin: Origin,
}

impl Feature {
    /// Its name in files and messages, such as `net.answers.change`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The channel, and what is taken of it. None of features that say whether a source is there.
    pub fn channel(&self) -> Option<(&'static Channel, Stat)> {
        let Origin::Channel(channel, stat) = self.origin else {
            return None;
        };
        Some((CHANNELS.get(channel)?, stat))
    }

    pub(super) fn place(&self) -> Option<(usize, Stat)> {
        match self.origin {
            Origin::Channel(channel, stat) => Some((channel, stat)),
            Origin::There(_) => None,
        }
    }

    pub(super) fn source(&self) -> Option<Source> {
        match self.origin {
            Origin::There(source) => Some(source),
            Origin::Channel(..) => None,
        }
    }

    /// The signals that it is made of.
    pub fn signals(&self) -> &'static [Signal] {
        self.channel().map_or(&[], |(channel, _)| channel.uses)
    }

    /// Whether it is made of what the guest dirties in memory or on disk, epoch by epoch. The page faults of QEMU belong to it: the
    /// tracker of dirty pages makes one for each page.
    pub fn is_of_dirty(&self) -> bool {
        let is = |signal: &Signal| {
            signal.source() == Source::Dirty
                || matches!(
                    signal,
                    Signal::GatewayEpochBytes | Signal::GatewayEpochBlocks | Signal::FaultsMinor
                )
        };
        self.signals().iter().any(is) || self.source() == Some(Source::Dirty)
    }

    /// What this value of it says, in words.
    pub fn in_words(&self, value: f32) -> String {
        let Some((channel, stat)) = self.channel() else {
            let is = if value > 0.5 { "is" } else { "is not" };
            return format!("{} {is} there", self.name);
        };
        let about = channel.about;
        match stat {
            Stat::Level => format!("{about}: {value:.2}"),
            Stat::Change if value >= 0.0 => format!("{about}: more than in its last minutes"),
            Stat::Change => format!("{about}: less than in its last minutes"),
            Stat::Slope if value >= 0.0 => format!("{about}: growing"),
            Stat::Slope => format!("{about}: falling"),
            Stat::Spread => format!("{about}: varies by {value:.2}"),
            Stat::Calm if value >= 0.0 => format!("{about}: less steady than in its last minutes"),
            Stat::Calm => format!("{about}: steadier than in its last minutes"),
            Stat::Recent => format!("{about}: {} in half a minute", value.exp_m1().round()),
        }
    }
}

/// All features, in order.
pub fn features() -> &'static [Feature] {
    static ALL: OnceLock<Vec<Feature>> = OnceLock::new();
    ALL.get_or_init(|| {
        let of_channels = CHANNELS.iter().enumerate().flat_map(|(at, channel)| {
            let stats: &[Stat] = match channel.depth {
                Depth::Full => &[
                    Stat::Level,
                    Stat::Change,
                    Stat::Slope,
                    Stat::Spread,
                    Stat::Calm,
                ],
                Depth::Short => &[Stat::Level, Stat::Change],
                Depth::Event => &[Stat::Recent],
            };
            stats.iter().map(move |stat| Feature {
                name: format!("{}.{}", channel.name, stat.name()),
                origin: Origin::Channel(at, *stat),
            })
        });
        let there = Source::ALL.into_iter().map(|source| Feature {
            name: format!("there.{source}"),
            origin: Origin::There(source),
        });
        of_channels.chain(there).collect()
    })
}

/// Where the feature of this name is among [`features`].
pub fn named(name: &str) -> Option<usize> {
    features().iter().position(|feature| feature.name == name)
}
