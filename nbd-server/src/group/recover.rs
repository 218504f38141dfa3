//! Recovery: brings what is committed into the images, with the history if it is kept, and finishes what was begun. Knows no threads.

use std::fmt;
use std::sync::Arc;

use epoch_log::history::{Anchor, History, HistoryError, Options as HistoryOptions};
use epoch_log::storage::Storage;
use epoch_log::{Epoch, EpochLog, LogError, Mode};

use super::history::{self, ColdSide, GroupHistory, Rewound, now_ms};
use super::image::Image;
use super::open::{GroupConfig, LogPlace, OpenError, Progress, check, identities, log_options};
use super::places::{open_images, open_log};

/// An error of the log's replay or of an image under it.
struct ReplayError(std::io::Error);

impl From<LogError> for ReplayError {
    fn from(error: LogError) -> Self {
        Self(error.into())
    }
}

impl GroupConfig {
    /// Sets the group back to epoch `to` of its history. Nobody may have it open. Interrupted, it goes on when the group is opened.
    ///
    /// # Errors
    /// [`OpenError`]: with [`OpenError::History`] nothing has changed.
    pub fn rewind(&self, to: Epoch) -> Result<Rewound, OpenError> {
        check(self)?;
        let images = open_images(self)?;
        let place = LogPlace {
            storage: open_log(self)?,
            options: log_options(self),
            history: HistoryOptions::default(),
        };
        let (mut log, _, history) = recover(self, &images, place, &mut |_| {})?;
        let history = history.ok_or_else(|| OpenError::Config {
            group: self.name.clone(),
            what: "it keeps no history; add [group.history] to its configuration".to_owned(),
        })?;
        // What it takes from cold storage must be there: half-way is no place to stay.
        let sizes: Vec<u64> = images.iter().map(Image::size).collect();
        let view = history.past.view(to);
        let there = view.and_then(|view| view.check_cold(&sizes));
        there.map_err(|source| history_error(self, source))?;
        let marked = history.past.begin_rewind(to);
        marked.map_err(|source| history_error(self, source))?;
        let rewound = go_on_rewinding(self, &images, &mut log, &history)?;
        let rewound = rewound.ok_or_else(|| OpenError::Start {
            group: self.name.clone(),
            what: "the mark of the rewind is gone".to_owned(),
        })?;
        let closed = log.close_clean();
        closed.map_err(|source| OpenError::Log {
            group: self.name.clone(),
            source,
        })?;
        Ok(rewound)
    }
}

/// Opens the log, applies what is committed, and says whether it had been closed in order.
pub(super) fn recover(
    config: &GroupConfig,
    images: &[Image],
    place: LogPlace,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(EpochLog, bool, Option<GroupHistory>), OpenError> {
    let log_error = |source| OpenError::Log {
        group: config.name.clone(),
        source,
    };
    let identities = identities(config, images);
    let (mut log, recovered) = EpochLog::open_or_create_on(
        Arc::clone(&place.storage),
        &config.name,
        &identities,
        place.options.clone(),
    )
    .map_err(log_error)?;
    let history = open_history(config, &place, &log)?;
    let total = recovered.unapplied.len() as u64;
    for (applied, epoch) in (1..).zip(&recovered.unapplied) {
        if let Some(history) = &history {
            history::save_epoch(history, images, &log, *epoch)
                .map_err(|source| history_error(config, source))?;
        }
        apply_epoch(config, images, &log, *epoch)?;
        progress(Progress {
            group: &config.name,
            applied,
            total,
        });
    }
    if let Some(last) = recovered.unapplied.last() {
        sync_images(config, images)?;
        log.mark_applied(*last).map_err(log_error)?;
        if let Some(history) = &history {
            history.past.applied(*last);
        }
    }
    if let Some(history) = &history {
        go_on_rewinding(config, images, &mut log, history)?;
    }
    let state = log.state();
    tracing::info!(group = config.name, state = %Said(state), clean = recovered.clean, "the epoch log is open");
    Ok((log, recovered.clean, history))
}

fn sync_images(config: &GroupConfig, images: &[Image]) -> Result<(), OpenError> {
    let written = images
        .iter()
        .zip(&config.disks)
        .filter(|(_, disk)| !disk.read_only);
    for (image, _) in written {
        image.sync().map_err(|source| apply_error(config, source))?;
    }
    Ok(())
}

/// Sets the images back where that was begun: see [`history::carry_out`].
fn go_on_rewinding(
    config: &GroupConfig,
    images: &[Image],
    log: &mut EpochLog,
    history: &GroupHistory,
) -> Result<Option<Rewound>, OpenError> {
    let rewinding = history
        .past
        .rewinding()
        .map_err(|source| history_error(config, source))?;
    let Some(to) = rewinding else {
        return Ok(None);
    };
    let rewound = history::carry_out(history, images, log, to);
    let rewound = rewound.map_err(|source| OpenError::Rewind {
        group: config.name.clone(),
        to,
        source,
    })?;
    tracing::info!(
        group = config.name,
        to = to.0,
        epoch = rewound.epoch.0,
        bytes = rewound.bytes,
        "the group is set back"
    );
    Ok(Some(rewound))
}

fn apply_epoch(
    config: &GroupConfig,
    images: &[Image],
    log: &EpochLog,
    epoch: Epoch,
) -> Result<(), OpenError> {
    log.replay_epoch(epoch, |extent| match images.get(usize::from(extent.disk)) {
        Some(image) => image.apply(&extent).map_err(ReplayError),
        None => Err(ReplayError(std::io::Error::other(format!(
            "the log names disk number {}",
            extent.disk
        )))),
    })
    .map_err(|ReplayError(source)| apply_error(config, source))
}

fn apply_error(config: &GroupConfig, source: std::io::Error) -> OpenError {
    OpenError::Apply {
        group: config.name.clone(),
        source,
    }
}

fn history_error(config: &GroupConfig, source: HistoryError) -> OpenError {
    OpenError::History {
        group: config.name.clone(),
        source,
    }
}

/// Opens the history that belongs to the log, if it is to be kept. One that is there must be.
fn open_history(
    config: &GroupConfig,
    place: &LogPlace,
    log: &EpochLog,
) -> Result<Option<GroupHistory>, OpenError> {
    let storage = place.storage.directory(history::DIRECTORY);
    let Some(wanted) = &config.history else {
        return match storage {
            Ok(storage) if is_there(storage.as_ref()) => Err(OpenError::HistoryLeft {
                group: config.name.clone(),
                dir: storage.path().to_owned(),
            }),
            _ => Ok(None),
        };
    };
    let storage = storage.map_err(|source| OpenError::Config {
        group: config.name.clone(),
        what: format!("a history can't be kept where its log is: {source}"),
    })?;
    let (past, opened) = History::open(storage, Anchor::from(log), place.history, now_ms())
        .map_err(|source| history_error(config, source))?;
    for lost in &opened.lost {
        tracing::error!(group = config.name, "the history is damaged: {lost}");
    }
    let cold = ColdSide::of(wanted);
    match &cold {
        Some(cold) => past.use_cold(Arc::clone(&cold.store) as _),
        None if past.status().cold_runs > 0 => tracing::warn!(
            group = config.name,
            "a part of the history is in cold storage and can't be read: [group.history.cold] is missing"
        ),
        None => {}
    }
    Ok(Some(GroupHistory {
        past,
        retention: wanted.retention(),
        cold,
    }))
}

/// A log's state in a few words.
struct Said<'a>(&'a epoch_log::LogState);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.0.mode == Mode::Sync {
            "sync"
        } else {
            "async"
        };
        write!(
            f,
            "generation {}, {mode} mode, epoch {} committed",
            self.0.generation, self.0.committed
        )
    }
}

/// Whether a directory is there, and holds anything.
fn is_there(storage: &dyn Storage) -> bool {
    storage.names().is_ok_and(|names| !names.is_empty())
}
