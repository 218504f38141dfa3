//! Metadata contexts that tell what has changed on a disk since a point in time: how clients name them, and what answers for them.
//!
//! `x-epochgate:changed-since:POINT` and `qemu:dirty-bitmap:POINT` say the same; the second is the name that QEMU, and what was made to
//! work with it, asks for.

use std::sync::{Arc, Mutex, PoisonError};

use epoch_log::Epoch;
use epoch_log::history::{Changes, History, HistoryError, View};

use super::Point;
use super::export::PastEntry;
use crate::agreed::MAX_CHANGED;
use crate::export::{ChangedContext, Cutter, IoError, Since};
use crate::group::error::with_sources;
use crate::group::{Group, Refusal};

const OWN: &str = "x-epochgate:changed-since:";
const QEMU: &str = "qemu:dirty-bitmap:";
/// Queries of one client that a point in time is looked for. Each may cost a look into the files of the history.
const MAX_QUERIES: usize = 16;
/// Pins that are listed, the newest.
const MAX_LISTED: usize = 32;

impl Group {
    /// Of these queries, those that name a context with a point in time which this disk has: in order, at most [`MAX_CHANGED`]. `instance` is
    /// what follows the `@`: a disk of the past has the points before it. Each is an attachment until it is dropped; the `cutter` ends
    /// the connection that it is for. May block, as [`Group::view`] does.
    pub fn changed_contexts(
        &self,
        disk: &str,
        instance: Option<&str>,
        queries: &[String],
        cutter: &Cutter,
    ) -> Vec<ChangedContext> {
        let disks = &self.shared.disks;
        let number = disks.iter().position(|other| other.name == disk);
        let Some(number) = number.and_then(|number| u16::try_from(number).ok()) else {
            return Vec::new();
        };
        let enter = |found: Found| {
            let name = found.point.to_string();
            let entry = PastEntry::new(&self.shared, &name, cutter.clone());
            ChangedContext {
                name: found.name,
                since: Arc::new(SincePoint {
                    disk: disk.to_owned(),
                    number,
                    history: found.history,
                    view: found.view,
                    until: Mutex::new(None),
                    _entry: entry,
                }),
            }
        };
        let found = self.find_points(instance, queries);
        found.into_iter().map(enter).collect()
    }

    fn find_points(&self, instance: Option<&str>, queries: &[String]) -> Vec<Found> {
        let (Some(history), Ok(last)) = (self.history(), self.last_point(instance)) else {
            return Vec::new();
        };
        let is_pin = |name: &str| history.past.pin_named(name).is_ok();
        let named = queries
            .iter()
            .filter_map(|query| Some((query, point(query, is_pin)?)))
            .take(MAX_QUERIES);
        let mut found = Vec::new();
        for (name, point) in named {
            let view = match self.view(&point) {
                Ok(view) if last.is_none_or(|last| view.point().epoch <= last) => view,
                // "the server [..] MUST NOT [..] fail": what is not there is not selected.
                _ => continue,
            };
            found.push(Found {
                name: name.clone(),
                point,
                history: Arc::clone(&history.past),
                view,
            });
            if found.len() == MAX_CHANGED {
                break;
            }
        }
        found
    }

    /// The names of such contexts that these queries ask to be shown, or without a query those of the newest pins.
    pub fn list_contexts(&self, instance: Option<&str>, queries: &[String]) -> Vec<String> {
        let (Some(history), Ok(last)) = (self.history(), self.last_point(instance)) else {
            return Vec::new();
        };
        let mut pins = history.past.pins();
        pins.retain(|pin| last.is_none_or(|last| pin.point.epoch <= last));
        let newest = pins.len().saturating_sub(MAX_LISTED);
        let newest = pins.get(newest..).unwrap_or_default();
        let mut names: Vec<String> = newest
            .iter()
            .flat_map(|pin| {
                [
                    format!("{OWN}pin={}", pin.name),
                    format!("{QEMU}{}", pin.name),
                ]
            })
            .filter(|name| queries.is_empty() || queries.iter().any(|query| begins(query, name)))
            .collect();
        for found in self.find_points(instance, queries) {
            if !names.contains(&found.name) {
                names.push(found.name);
            }
        }
        names
    }

    /// The epoch that a disk of the past shows; none: it is as it is now.
    fn last_point(&self, instance: Option<&str>) -> Result<Option<Epoch>, Refusal> {
        match instance.filter(|instance| super::names_a_point(instance)) {
            None => Ok(None),
            Some(text) => {
                let point: Point = text
                    .parse()
                    .map_err(|error: super::PointError| Refusal::Past(error.to_string()))?;
                self.view(&point).map(|view| Some(view.point().epoch))
            }
        }
    }
}

/// The point in time that a query names. QEMU calls its bitmaps by plain names, so there the name of a pin is enough, and goes before a number.
fn point(query: &str, is_pin: impl Fn(&str) -> bool) -> Option<Point> {
    if let Some(name) = query.strip_prefix(QEMU)
        && is_pin(name)
    {
        return Some(Point::Pin(name.to_owned()));
    }
    let text = query
        .strip_prefix(OWN)
        .or_else(|| query.strip_prefix(QEMU))?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(|epoch| Point::Epoch(Epoch(epoch)));
    }
    text.parse().ok()
}

/// A query that ends with a `:` asks for all that begins with it.
fn begins(query: &str, name: &str) -> bool {
    query == name || (query.len() > 1 && query.ends_with(':') && name.starts_with(query))
}

/// What a query means.
struct Found {
    name: String,
    point: Point,
    history: Arc<History>,
    view: View,
}

/// A point in time of one disk. The history keeps it as long as this is.
struct SincePoint {
    history: Arc<History>,
    disk: String,
    number: u16,
    view: View,
    /// What changed up to a point, once it was asked for: there is one connection, and it sees one point.
    until: Mutex<Option<(Epoch, Arc<Changes>)>>,
    /// Whoever closes the group sends its client away. Dropped last: when it is gone, nobody looks at the history any more.
    _entry: PastEntry,
}

impl SincePoint {
    fn changes(&self, until: Epoch) -> Result<Arc<Changes>, HistoryError> {
        let mut slot = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((epoch, changes)) = slot.as_ref()
            && *epoch == until
        {
            return Ok(Arc::clone(changes));
        }
        let changes = Arc::new(self.history.changes(self.view.point().epoch, until)?);
        *slot = Some((until, Arc::clone(&changes)));
        Ok(changes)
    }

    fn look(
        &self,
        until: Option<Epoch>,
        offset: u64,
        end: u64,
    ) -> Result<Vec<(u64, u64)>, HistoryError> {
        match until {
            None => self.view.changed(self.number, offset, end),
            Some(until) => self.changes(until)?.changed(self.number, offset, end),
        }
    }
}

impl Since for SincePoint {
    fn changed(
        &self,
        until: Option<Epoch>,
        offset: u64,
        len: u64,
    ) -> Result<Vec<(u64, u64)>, IoError> {
        let from = self.view.point().epoch;
        // A time may be another point now than when the client asked for the context.
        if until.is_some_and(|until| until < from) {
            return Err(IoError::Inval);
        }
        self.look(until, offset, offset.saturating_add(len))
            .map_err(|error| {
                tracing::error!(
                    disk = self.disk,
                    epoch = from.0,
                    "what has changed can't be told: {}",
                    with_sources(&error)
                );
                IoError::Io
            })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn points_are_named_by_number_in_words_and_for_qemu_by_pin() {
        let pins = |name: &str| ["daily", "20261128"].contains(&name);
        let epoch = |number| Some(Point::Epoch(Epoch(number)));
        let pin = |name: &str| Some(Point::Pin(name.to_owned()));
        for (query, expected) in [
            ("x-epochgate:changed-since:1234", epoch(1234)),
            ("x-epochgate:changed-since:epoch=1234", epoch(1234)),
            ("x-epochgate:changed-since:20261128", epoch(20_261_128)),
            ("x-epochgate:changed-since:pin=none", pin("none")),
            ("x-epochgate:changed-since:daily", None),
            ("qemu:dirty-bitmap:1234", epoch(1234)),
            ("qemu:dirty-bitmap:20261128", pin("20261128")),
            ("qemu:dirty-bitmap:epoch=20261128", epoch(20_261_128)),
            ("qemu:dirty-bitmap:daily", pin("daily")),
            ("qemu:dirty-bitmap:pin=daily", pin("daily")),
            (
                "qemu:dirty-bitmap:time=2026-11-22T10:15:00Z",
                Some(Point::Time(1_795_342_500_000)),
            ),
            ("qemu:dirty-bitmap:weekly", None),
            ("qemu:dirty-bitmap:", None),
            ("qemu:dirty-bitmap:99999999999999999999", None),
            ("qemu:allocation-depth", None),
            ("base:1234", None),
        ] {
            assert_eq!(point(query, pins), expected, "{query}");
        }
    }

    #[test]
    fn a_beginning_ends_with_a_colon() {
        let name = "qemu:dirty-bitmap:daily";
        for query in ["qemu:", "qemu:dirty-bitmap:", name] {
            assert!(begins(query, name), "{query}");
        }
        for query in ["", ":", "q", "qemu", "qemu:dirty-bitmap:d", "x-epochgate:"] {
            assert!(!begins(query, name), "{query}");
        }
    }
}
