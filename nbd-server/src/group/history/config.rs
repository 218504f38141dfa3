//! `[group.history]`: how much of the past a group keeps. Values only.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::cold::ColdConfig;
use crate::group::barriers::Holds;
use crate::group::{GroupConfig, GroupMode};
use epoch_log::history::{Retention, Tier};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// How much history a group keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryConfig {
    /// No longer than this, such as "7d".
    pub age: Span,
    /// In no more space than this, such as "200GiB".
    pub size: Size,
    /// It gives way when less than this is free where it lies.
    pub min_free: Size,
    /// From which age on one point in how much time is enough; before the first age every epoch is kept.
    pub thin: Vec<Thin>,
    /// Where what is old goes; none: it stays where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold: Option<ColdConfig>,
}

/// From an age on, points are kept at this distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thin {
    /// The age.
    pub after: Span,
    /// The distance.
    pub every: Span,
}

impl Default for HistoryConfig {
    /// A week in 100 GiB: every epoch for ten minutes, then one a second, after a day one a minute.
    fn default() -> Self {
        let thin = |after, every| Thin {
            after: Span(after),
            every: Span(every),
        };
        Self {
            age: Span(7 * DAY),
            size: Size(100 << 30),
            min_free: Size(1 << 30),
            thin: vec![thin(10 * MINUTE, SECOND), thin(DAY, MINUTE)],
            cold: None,
        }
    }
}

impl HistoryConfig {
    /// The first thing that is wrong, in words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<(), String> {
        if self.age.0 == 0 {
            return Err("history.age must be more than 0".to_owned());
        }
        let rising = |a: &Thin, b: &Thin| a.after.0 < b.after.0 && a.every.0 < b.every.0;
        let zero = self.thin.iter().any(|thin| thin.every.0 == 0);
        if zero
            || !self
                .thin
                .windows(2)
                .all(|pair| matches!(pair, [a, b] if rising(a, b)))
        {
            return Err(
                "history.thin must rise: each entry has a later 'after' and a longer 'every' than the one before it"
                    .to_owned(),
            );
        }
        self.cold.as_ref().map_or(Ok(()), |cold| cold.check(self))
    }

    /// The same for the history itself.
    pub fn retention(&self) -> Retention {
        Retention {
            age_ms: self.age.0,
            bytes: self.size.0,
            min_free: self.min_free.0,
            tiers: self
                .thin
                .iter()
                .map(|thin| Tier {
                    older_than_ms: thin.after.0,
                    one_in_ms: thin.every.0,
                })
                .collect(),
        }
    }
}

impl GroupConfig {
    /// Whether the group keeps its past. Then nothing may write to an image but what saves first what is there.
    pub fn keeps_history(&self) -> bool {
        self.history.is_some()
    }

    /// When the group holds writes in epochs.
    pub fn holds(&self) -> Holds {
        match self.mode {
            _ if self.keeps_history() => Holds::Always,
            GroupMode::Sync => Holds::Protected,
            GroupMode::Async => Holds::Alone,
        }
    }
}

const SECOND: u64 = 1000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const UNITS_OF_TIME: [(&str, u64); 7] = [
    ("d", DAY),
    ("h", HOUR),
    ("min", MINUTE),
    ("m", MINUTE),
    ("ms", 1),
    ("s", SECOND),
    ("w", 7 * DAY),
];
const UNITS_OF_SIZE: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("B", 1),
];

/// A span of time, written as "90s", "10min", "6h", "7d" or "2w". In milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

impl Span {
    /// The same for the standard library.
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// A number of bytes, written as "512MiB", "200GiB" or "2TiB".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A number with a unit.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit.trim();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// The largest unit that leaves no rest.
fn print(f: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)]) -> fmt::Result {
    let whole = units
        .iter()
        .filter(|(_, factor)| number > 0 && number.is_multiple_of(*factor));
    // Of two names for one unit, the first.
    let best = whole
        .rev()
        .max_by_key(|(_, factor)| *factor)
        .or(units.last());
    let (name, factor) = best.copied().unwrap_or(("", 1));
    write!(f, "{}{name}", number / factor)
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, &UNITS_OF_TIME)
            .map(Self)
            .ok_or_else(|| format!("'{text}' is no span of time; write one such as \"90s\", \"10min\", \"6h\" or \"7d\""))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, &UNITS_OF_SIZE).map(Self).ok_or_else(|| {
            format!("'{text}' is no size; write one such as \"512MiB\", \"200GiB\" or \"2TiB\"")
        })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nobody counts a month in weeks.
        print(f, self.0, UNITS_OF_TIME.get(..6).unwrap_or_default())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(f, self.0, &UNITS_OF_SIZE)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spans_and_sizes_are_written_with_units() {
        for (text, ms) in [
            ("90s", 90_000),
            ("10min", 600_000),
            ("7d", 7 * DAY),
            ("250ms", 250),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.0, span.to_string()), (ms, text.to_owned()));
        }
        for (text, bytes) in [("512MiB", 512 << 20), ("3TiB", 3 << 40), ("1000B", 1000)] {
            let size: Size = text.parse().unwrap();
            assert_eq!((size.0, size.to_string()), (bytes, text.to_owned()));
        }
        assert_eq!("2G".parse(), Ok(Size(2 << 30)));
        for text in [
            "",
            "7",
            "d",
            "-1d",
            "1.5h",
            "7 days",
            "99999999999999999999d",
            "9999999999999w",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert!("12".parse::<Size>().unwrap_err().contains("12"));
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let thin = |after: &str, every: &str| Thin {
            after: after.parse().unwrap(),
            every: every.parse().unwrap(),
        };
        let good = HistoryConfig::default();
        assert_eq!(good.check(), Ok(()));
        for wrong in [
            vec![thin("1h", "1s"), thin("1min", "1min")],
            vec![thin("1h", "1s"), thin("2h", "1s")],
            vec![thin("1h", "0s")],
        ] {
            let config = HistoryConfig {
                thin: wrong,
                ..good.clone()
            };
            assert!(config.check().is_err(), "{config:?}");
        }
        let cold = |to: &str, after: &str| HistoryConfig {
            cold: Some(ColdConfig {
                to: to.to_owned(),
                after: after.parse().unwrap(),
                when_above: None,
            }),
            ..good.clone()
        };
        for to in ["s3://bucket/prefix", "/srv/cold"] {
            assert_eq!(cold(to, "1d").check(), Ok(()));
        }
        for (to, after, why) in [
            ("http://bucket", "1d", "s3://"),
            ("s3://bucket", "7d", "history.age"),
            ("s3://bucket", "6h", "thinned"),
        ] {
            let said = cold(to, after).check().unwrap_err();
            assert!(said.contains(why), "{said}");
        }
    }
}
