//! How a point in time is named behind the `@` of an export: `epoch=1234`, `time=2026-11-22T10:15:00Z`, `pin=before-upgrade`.

use std::fmt;
use std::str::FromStr;

use epoch_log::Epoch;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A point in time as people name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// This epoch.
    Epoch(Epoch),
    /// The newest point at or before this time, in milliseconds since 1970.
    Time(u64),
    /// The point with this name.
    Pin(String),
}

/// Why a text names no point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{text}' names no point in time; write epoch=NUMBER, time=YYYY-MM-DDThh:mm:ssZ (or with another offset from UTC), or pin=NAME"
)]
pub struct PointError {
    text: String,
}

impl FromStr for Point {
    type Err = PointError;

    fn from_str(text: &str) -> Result<Self, PointError> {
        let wrong = || PointError {
            text: text.to_owned(),
        };
        let (what, value) = text.split_once('=').ok_or_else(wrong)?;
        match what {
            "epoch" => value
                .parse()
                .map(|number| Self::Epoch(Epoch(number)))
                .map_err(|_| wrong()),
            "time" => {
                let time: jiff::Timestamp = value.parse().map_err(|_| wrong())?;
                u64::try_from(time.as_millisecond())
                    .map(Self::Time)
                    .map_err(|_| wrong())
            }
            "pin" if !value.is_empty() => Ok(Self::Pin(value.to_owned())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch(epoch) => write!(f, "epoch={epoch}"),
            Self::Time(ms) => write!(f, "time={}", rfc3339(*ms)),
            Self::Pin(name) => write!(f, "pin={name}"),
        }
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A time, in milliseconds since 1970, as RFC 3339 writes it in UTC.
pub fn rfc3339(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{ms} ms"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn points_are_named_in_three_ways() {
        for (text, point) in [
            ("epoch=1234", Point::Epoch(Epoch(1234))),
            ("time=2026-11-22T10:15:00Z", Point::Time(1_795_342_500_000)),
            ("pin=before-upgrade", Point::Pin("before-upgrade".into())),
        ] {
            assert_eq!(text.parse(), Ok(point.clone()));
            assert_eq!(point.to_string(), text);
        }
        assert_eq!(
            "time=2026-11-22T12:15:00+02:00".parse(),
            Ok(Point::Time(1_795_342_500_000))
        );
        for text in [
            "",
            "epoch",
            "epoch=",
            "epoch=-1",
            "epoch=x",
            "time=yesterday",
            "time=1969-01-01T00:00:00Z",
            "pin=",
            "now=1",
        ] {
            let error = text.parse::<Point>().unwrap_err();
            assert!(error.to_string().contains("epoch=NUMBER"), "{text}");
        }
    }
}
