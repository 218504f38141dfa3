//! The past of the groups: what is kept, names for it, and the way back. The control API is its only caller.

use std::sync::Arc;
use std::time::Instant;

use epoch_log::Epoch;
use epoch_log::history::{Frozen, HistoryError, HistoryStatus, Kept, Pin};

use super::aliases;
use super::catalog::{Catalog, ChangeError, GRACE};
use super::reload::in_use;
use crate::group::history::{GroupHistory, PIN_PREFIX, Point, Rewound, now_ms};
use crate::group::{Group, GroupConfig, OpenError};
use crate::image_file::ImageError;

/// How often it is looked whether clients are gone.
const LOOK: std::time::Duration = std::time::Duration::from_millis(20);

/// Points in time, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Points {
    /// How much there is in all.
    pub status: HistoryStatus,
    /// The points.
    pub points: Vec<Kept>,
    /// There are more, from this epoch on.
    pub more: Option<Epoch>,
}

impl Catalog {
    /// The points that a group keeps, from `since` on, at most `most`. May block.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn points(
        &self,
        group: &str,
        since: Option<&Point>,
        most: usize,
    ) -> Result<Points, ChangeError> {
        let group = self.group_named(group)?;
        let past = &history_of(&group)?.past;
        group.settle();
        let status = past.status();
        let since = match since {
            None => status.oldest,
            Some(Point::Epoch(epoch)) => *epoch,
            Some(Point::Pin(name)) => past.pin_named(name)?.point.epoch,
            // What is older than all that is kept begins with the oldest.
            Some(Point::Time(ms)) if *ms < status.oldest_time_ms => status.oldest,
            Some(Point::Time(ms)) => past.view_at(*ms)?.point().epoch,
        };
        let (mut points, mut more) = (Vec::new(), None);
        past.visit_points(since, |point| {
            if points.len() < most {
                points.push(point);
            } else {
                more.get_or_insert(point.epoch);
            }
        })?;
        Ok(Points {
            status,
            points,
            more,
        })
    }

    /// Gives a point a name, so that it is never trimmed: the newest committed one unless `at` says which. May block.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn pin(&self, group: &str, name: &str, at: Option<&Point>) -> Result<Pin, ChangeError> {
        check_pin(name)?;
        let group = self.group_named(group)?;
        let past = &history_of(&group)?.past;
        let newest = Point::Epoch(group.status().committed);
        let view = group
            .view(at.unwrap_or(&newest))
            .map_err(ChangeError::Past)?;
        Ok(past.pin(name, view.point().epoch)?)
    }

    /// Takes a name away. May block.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn unpin(&self, group: &str, name: &str) -> Result<Pin, ChangeError> {
        check_pin(name)?;
        let group = self.group_named(group)?;
        Ok(history_of(&group)?.past.unpin(name)?)
    }

    /// Keeps all that a group's history has, whatever its age and size, for so long or until it is thawed. May block.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn freeze(&self, group: &str, for_ms: Option<u64>) -> Result<Frozen, ChangeError> {
        let group = self.group_named(group)?;
        let now = now_ms();
        let until = for_ms.map(|span| now.saturating_add(span));
        let frozen = history_of(&group)?.past.freeze(now, until)?;
        tracing::info!(
            group = group.name(),
            until_ms = frozen.until_ms,
            "the history is frozen: nothing goes for its age or size"
        );
        Ok(frozen)
    }

    /// Ends that. Returns what it was, if it was. May block.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn thaw(&self, group: &str) -> Result<Option<Frozen>, ChangeError> {
        let group = self.group_named(group)?;
        let was = history_of(&group)?.past.thaw()?;
        if was.is_some() {
            tracing::info!(group = group.name(), "the history is no longer frozen");
        }
        Ok(was)
    }

    /// Sets a group back to a point of its past. With clients, an owner or a standby it is refused unless `force`: then they are sent away,
    /// and a VM that runs on it is fenced. May block, for as long as it takes to put back what changed since.
    ///
    /// # Errors
    /// [`ChangeError`]: nothing has changed, but for [`ChangeError::Open`]: then it goes on at the next start.
    pub fn rewind(&self, name: &str, to: &Point, force: bool) -> Result<Rewound, ChangeError> {
        let state = self.lock()?;
        let group = self.group_named(name)?;
        history_of(&group)?;
        let to = group.view(to).map_err(ChangeError::Past)?.point().epoch;
        let config = state.file.groups.iter().find(|config| config.name == name);
        let config = config.cloned().ok_or(ChangeError::Stopping)?;
        {
            let mut contents = self.directory().change();
            if let Some(why) = in_use(&group).filter(|_| !force) {
                return Err(ChangeError::InUse {
                    group: name.to_owned(),
                    why,
                });
            }
            contents.groups.remove(name);
            contents.set_back.insert(name.to_owned());
            contents.aliases = aliases_without(&state.file.groups, name);
        }
        close(group);
        tracing::info!(group = name, to = to.0, "the group is being set back");
        let rewound = when_free(|| config.rewind(to));
        // It is served again whatever came of it.
        let opened = when_free(|| Group::open(&config, &mut |_| {}));
        let mut contents = self.directory().change();
        contents.set_back.remove(name);
        let opened = opened.map_err(ChangeError::Open)?;
        contents.groups.insert(name.to_owned(), Arc::new(opened));
        contents.aliases = aliases(&state.file.groups);
        rewound.map_err(ChangeError::Open)
    }

    pub(super) fn group_named(&self, name: &str) -> Result<Arc<Group>, ChangeError> {
        self.directory()
            .group(name)
            .map_err(ChangeError::UnknownGroup)
    }
}

fn check_pin(name: &str) -> Result<(), ChangeError> {
    if name.starts_with(PIN_PREFIX) {
        return Err(ChangeError::PinOfClone {
            name: name.to_owned(),
        });
    }
    Ok(())
}

fn history_of(group: &Group) -> Result<&GroupHistory, ChangeError> {
    group.history().ok_or_else(|| ChangeError::NoHistory {
        group: group.name().to_owned(),
    })
}

/// Sends everybody away and ends the group in order.
fn close(group: Arc<Group>) {
    group.send_away();
    let begun = Instant::now();
    while group.connections() > 0 && begun.elapsed() < GRACE {
        std::thread::sleep(LOOK);
    }
    group.stop();
}

/// Opens what somebody may be just about to let go: the last client's last request.
fn when_free<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let begun = Instant::now();
    loop {
        match open() {
            Err(
                OpenError::Image {
                    source: ImageError::Locked { .. },
                    ..
                }
                | OpenError::Log {
                    source: epoch_log::LogError::InUse { .. },
                    ..
                }
                | OpenError::History {
                    source: HistoryError::Log(epoch_log::LogError::InUse { .. }),
                    ..
                },
            ) if begun.elapsed() < GRACE => std::thread::sleep(LOOK),
            other => return other,
        }
    }
}

fn aliases_without(
    groups: &[GroupConfig],
    name: &str,
) -> std::collections::BTreeMap<String, String> {
    let others: Vec<GroupConfig> = groups
        .iter()
        .filter(|group| group.name != name)
        .cloned()
        .collect();
    aliases(&others)
}
