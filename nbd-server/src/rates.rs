//! Which exports are held to a pace, and the buckets of those that are attached.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::access::Pattern;
use crate::connection::Throttle;
use crate::limits::Rate;

/// One `[[rate_limit]]` of the configuration. Every export that it is about has a pace of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Which exports: a name, with `*` for any characters. A disk of a group is `group/disk`.
    pub export: String,
    /// Requests per second over all connections, at least 1.
    #[serde(default)]
    pub iops: Option<u64>,
    /// Bytes read and written per second over all connections: a number, or one with K, M or G (powers of 1024). At least 1.
    #[serde(default)]
    pub bytes_per_second: Option<String>,
}

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the rate limit for export \"{export}\" is wrong: {what}; write iops = 5000 or bytes_per_second = \"100M\", at least 1"
)]
pub struct RateError {
    export: String,
    what: &'static str,
}

/// All limits. The first that matches an export decides.
#[derive(Clone, Debug, Default)]
pub struct RateLimits {
    rules: Vec<(Pattern, Rate)>,
    throttles: Arc<Mutex<HashMap<String, Arc<Throttle>>>>,
}

impl PartialEq for RateLimits {
    /// What has been used up is no part of the limits.
    fn eq(&self, other: &Self) -> bool {
        self.rules == other.rules
    }
}

impl RateLimits {
    /// Reads the limits of a configuration, in their order.
    ///
    /// # Errors
    /// [`RateError`] for the first that makes no sense.
    pub fn new(limits: &[RateLimit]) -> Result<Self, RateError> {
        let rules = limits.iter().map(rule).collect::<Result<_, _>>()?;
        Ok(Self {
            rules,
            ..Self::default()
        })
    }

    /// The pace of the disk that has these names, if it has one. Its own name is the last.
    pub(crate) fn throttle(&self, names: &[String]) -> Option<Arc<Throttle>> {
        let matches = |pattern: &Pattern| names.iter().any(|name| pattern.matches(name));
        let (_, rate) = self.rules.iter().find(|(pattern, _)| matches(pattern))?;
        let mut throttles = self
            .throttles
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let throttle = throttles
            .entry(names.last()?.clone())
            .or_insert_with(|| Arc::new(Throttle::new(*rate, Instant::now())));
        Some(Arc::clone(throttle))
    }
}

fn rule(limit: &RateLimit) -> Result<(Pattern, Rate), RateError> {
    let error = |what| RateError {
        export: limit.export.clone(),
        what,
    };
    let bytes = limit.bytes_per_second.as_deref().map(parse_bytes);
    let bytes = match bytes {
        Some(None) => return Err(error("bytes_per_second is no number")),
        Some(bytes) => bytes,
        None => None,
    };
    if limit.iops.is_none() && bytes.is_none() {
        return Err(error("it limits nothing"));
    }
    if limit.iops == Some(0) || bytes == Some(0) {
        return Err(error("nothing would ever pass"));
    }
    let rate = Rate {
        requests: limit.iops,
        bytes,
    };
    Ok((Pattern::new(&limit.export), rate))
}

fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = match text.trim().strip_suffix(['K', 'M', 'G']) {
        Some(number) => (number, text.trim().chars().last()),
        None => (text.trim(), None),
    };
    let factor = match unit {
        Some('K') => 1 << 10,
        Some('M') => 1 << 20,
        Some(_) => 1 << 30,
        None => 1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn limit(export: &str, iops: Option<u64>, bytes: Option<&str>) -> RateLimit {
        RateLimit {
            export: export.to_owned(),
            iops,
            bytes_per_second: bytes.map(str::to_owned),
        }
    }

    #[test]
    fn bytes_are_read_with_their_unit() {
        for (text, bytes) in [
            ("7", Some(7)),
            ("3K", Some(3 << 10)),
            ("100M", Some(100 << 20)),
            ("2G", Some(2 << 30)),
            ("M", None),
            ("1T", None),
            ("-1", None),
            ("99999999999999G", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
        for wrong in [
            limit("a", None, None),
            limit("a", Some(0), None),
            limit("a", None, Some("0")),
            limit("a", None, Some("fast")),
        ] {
            assert!(
                RateLimits::new(std::slice::from_ref(&wrong)).is_err(),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn a_disk_has_one_pace_by_all_its_names() {
        let limits = RateLimits::new(&[limit("vm/*", Some(5), None)]).unwrap();
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let one = limits.throttle(&names(&["system", "vm/root"])).unwrap();
        let same = limits.throttle(&names(&["vm/root"])).unwrap();
        let other = limits.throttle(&names(&["vm/data"])).unwrap();
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        assert!(limits.throttle(&names(&["else"])).is_none());
    }
}
