//! Makes a backup: pins a point at the gateway, copies what the place does not have, writes the manifest. The pin stays until the next backup is
//! complete, because from there the next one finds what has changed.
//!
//! What an interrupted backup has stored is used by the next run, as long as its pin is there: it is of the same point then.

mod packs;
mod region;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use nbd_server::control::api::{Pin, Point};
use serde::Serialize;

use crate::format::{
    DiskOf, Entry, FAN, Id, MOST_DISK, MOST_DISKS, Manifest, REGION, SPAN, name, pieces,
};
use crate::gateway::Gateway;
use crate::lock::Lock;
pub use crate::nbd::Nbd;
use crate::read::Regions;
use crate::repository::Pending;
use crate::{BackupError, Repository, Watch};
use packs::Packs;
use region::Worker;

/// What shall be backed up, and how.
#[derive(Debug, Clone)]
pub struct Order {
    /// The group.
    pub group: String,
    /// Control socket of the gateway.
    pub control: PathBuf,
    /// Where it serves its disks; none: as it says itself.
    pub nbd: Option<Nbd>,
    /// The name of the backup; none: after the time.
    pub name: Option<Id>,
    /// The point; none: the newest.
    pub at: Option<Point>,
    /// Read and store everything, share nothing with earlier backups.
    pub full: bool,
    /// Parts that are worked on at once.
    pub jobs: usize,
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Created {
    /// Its name.
    pub backup: String,
    /// The group.
    pub group: String,
    /// The epoch that it is of.
    pub epoch: u64,
    /// When that was, in milliseconds since 1970.
    pub time_ms: u64,
    /// The backup that it was compared with.
    pub parent: Option<String>,
    /// Why it was compared with the blocks of its parent instead of asking the gateway what has changed; none if it was asked.
    pub compared: Option<String>,
    /// It goes on where an earlier run was interrupted.
    pub resumed: bool,
    /// The pin at the gateway that is kept for the next one.
    pub pin: String,
    /// Size of all disks in bytes.
    pub size: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that were stored, in this run and in those before it.
    pub stored: u64,
    /// Bytes of them that an earlier run had stored.
    pub reused: u64,
}

/// A disk as this run sees it.
#[derive(Debug)]
struct Source {
    name: String,
    export: String,
    size: u64,
    /// The same disk in the parent.
    before: Option<DiskOf>,
}

/// Makes a backup.
///
/// # Errors
/// [`BackupError`]. What is stored by then is used by the next run.
pub fn create(
    repository: &Repository,
    order: &Order,
    watch: &dyn Watch,
) -> Result<Created, BackupError> {
    name::check("a group", &order.group).map_err(|error| BackupError::Usage(error.to_string()))?;
    let gateway = Gateway::connect(&order.control)?;
    let status = gateway.status()?;
    let nbd = match &order.nbd {
        Some(nbd) => nbd.clone(),
        None => listens(&status.listen)?,
    };
    let group = &order.group;
    let pins = pins(&gateway, group)?;
    let lock = Lock::take(repository, group, watch)?;
    let (before, damaged) = repository.backups(Some(group))?;
    for error in &damaged {
        watch.say(&format!("{error}; it is left out of account"));
    }
    let (id, pin, resumed) = begin(repository, order, &gateway, &pins, watch)?;
    let parent = before.last().filter(|_| !order.full);
    let pins = self::pins(&gateway, group)?;
    // By the name of its pin, which no other backup has, and its time: so not one of another life of the group.
    let since = parent.map(|parent| {
        let pin = parent.id.pin();
        let kept = pins.iter().find(|kept| kept.name == pin);
        let same = kept.is_some_and(|kept| {
            kept.point.epoch.0 == parent.epoch && kept.point.time_ms == parent.time_ms
        });
        same.then_some(pin)
    });
    let compared = match (&since, parent) {
        (Some(None), Some(parent)) => Some(format!(
            "the gateway no longer keeps the point of {}, so all is read and compared with it",
            parent.id
        )),
        _ => None,
    };
    if let Some(why) = &compared {
        watch.say(why);
    }
    let sources = sources(&status, group, parent)?;
    let stored_before = repository.packs(group, Some(&id))?;
    let packs = Packs::new(repository, group, &id, &stored_before)?;
    watch.begin(sources.iter().map(|source| source.size).sum());
    let copy = Copy {
        repository,
        group,
        nbd: &nbd,
        pin: &pin.name,
        since: since.flatten(),
        sources: &sources,
        packs: &packs,
        watch,
    };
    let (disks, read) = copy.run(order.jobs)?;
    lock.check()?;
    let manifest = Manifest {
        id: id.clone(),
        group: group.clone(),
        epoch: pin.point.epoch.0,
        time_ms: pin.point.time_ms,
        made_ms: now_ms(),
        parent: parent.map(|parent| parent.id.clone()),
        read,
        stored: packs.stored(),
        disks,
    };
    repository.commit(&manifest)?;
    repository.set_pending(group, None)?;
    if let Err(error) = let_go(order, &before) {
        // The backup is complete all the same, and the next one tries again.
        watch.say(&format!(
            "the pins of earlier backups are still there: {error}"
        ));
    }
    Ok(Created {
        backup: id.to_string(),
        group: group.clone(),
        epoch: manifest.epoch,
        time_ms: manifest.time_ms,
        parent: manifest.parent.as_ref().map(ToString::to_string),
        compared,
        resumed,
        pin: pin.name,
        size: manifest.size(),
        read,
        stored: manifest.stored,
        reused: stored_before.iter().map(|(_, size)| size).sum(),
    })
}

/// The name and the pin of the backup: those of the interrupted one if it can go on.
fn begin(
    repository: &Repository,
    order: &Order,
    gateway: &Gateway,
    pins: &[Pin],
    watch: &dyn Watch,
) -> Result<(Id, Pin, bool), BackupError> {
    let group = &order.group;
    if let Some(pending) = repository.pending(group)?
        && let Ok(id) = Id::new(&pending.id)
    {
        let pin = pins.iter().find(|pin| pin.name == id.pin());
        let complete = repository
            .ids(Some(group))?
            .iter()
            .any(|(_, other)| *other == id);
        let same = pending == Pending::new(&id, order.at.as_ref(), order.full)
            && order.name.as_ref().is_none_or(|name| *name == id);
        match pin {
            Some(pin) if same && !complete => {
                watch.say(&format!("going on with {id}, which was interrupted"));
                return Ok((id, pin.clone(), true));
            }
            _ if complete => {}
            // Nobody can go on with it.
            _ => {
                watch.say(&format!(
                    "{id} was interrupted and can't go on; it is removed"
                ));
                for ((pack, number), _) in repository.packs(group, Some(&id))? {
                    let name = crate::repository::pack_name(group, &pack, number);
                    repository.objects.delete(&name)?;
                }
                unpin(gateway, group, pins, &id)?;
            }
        }
    }
    let id = match &order.name {
        Some(id) => id.clone(),
        None => fresh_id()?,
    };
    if repository
        .ids(Some(group))?
        .iter()
        .any(|(_, other)| *other == id)
    {
        return Err(BackupError::Usage(format!(
            "there is a backup {id} of group {group} already"
        )));
    }
    if !repository.packs(group, Some(&id))?.is_empty() {
        return Err(BackupError::Usage(format!(
            "there are packs of an earlier backup {id} of group {group}, which others may need; take another name"
        )));
    }
    // First the note, so that a pin never is without one.
    let pending = Pending::new(&id, order.at.as_ref(), order.full);
    repository.set_pending(group, Some(&pending))?;
    match gateway.pin(group, &id.pin(), order.at.as_ref()) {
        Ok(pin) => Ok((id, pin, false)),
        Err(error) => {
            repository.set_pending(group, None)?;
            Err(error.into())
        }
    }
}

/// Takes away the pins of all earlier backups: their successor is complete.
fn let_go(order: &Order, before: &[Manifest]) -> Result<(), BackupError> {
    // Hours may have passed on a connection that nobody used.
    let gateway = Gateway::connect(&order.control)?;
    let pins = pins(&gateway, &order.group)?;
    for earlier in before {
        unpin(&gateway, &order.group, &pins, &earlier.id)?;
    }
    Ok(())
}

/// Takes the pin of a backup away, if it is one of `pins`.
fn unpin(gateway: &Gateway, group: &str, pins: &[Pin], id: &Id) -> Result<(), BackupError> {
    let name = id.pin();
    if pins.iter().any(|pin| pin.name == name) {
        gateway.unpin(group, &name)?;
    }
    Ok(())
}

fn pins(gateway: &Gateway, group: &str) -> Result<Vec<Pin>, BackupError> {
    gateway.pins(group)?.ok_or_else(|| {
        BackupError::Usage(format!(
            "group {group} keeps no history, so it can't be backed up while it is written; give it [group.history] in the gateway's configuration"
        ))
    })
}

/// Where the gateway serves NBD: its unix socket before all others.
fn listens(listen: &[String]) -> Result<Nbd, BackupError> {
    let addresses = || listen.iter().filter_map(|text| text.parse().ok());
    let unix = addresses().find(|nbd| matches!(nbd, Nbd::Unix(_)));
    unix.or_else(|| addresses().next()).ok_or_else(|| {
        BackupError::Usage(
            "the gateway serves NBD at no address that can be used here; name one: --nbd unix:PATH or --nbd HOST:PORT".to_owned(),
        )
    })
}

fn sources(
    status: &nbd_server::control::api::GatewayStatus,
    group: &str,
    parent: Option<&Manifest>,
) -> Result<Vec<Source>, BackupError> {
    let found = status.groups.iter().find(|status| status.name == group);
    let disks = found
        .map(|status| status.disks.as_slice())
        .unwrap_or_default();
    if disks.is_empty()
        || disks.len() > MOST_DISKS
        || disks.iter().any(|disk| disk.size > MOST_DISK)
    {
        return Err(BackupError::Usage(format!(
            "group {group} has no disks, or more or larger ones than a backup can have"
        )));
    }
    let before = |name: &str| {
        let disks = parent.map(|parent| parent.disks.iter());
        disks
            .into_iter()
            .flatten()
            .find(|disk| disk.name == name)
            .cloned()
    };
    let sources = disks.iter().map(|disk| Source {
        name: disk.name.clone(),
        export: format!("{group}/{}", disk.name),
        size: disk.size,
        before: before(&disk.name),
    });
    Ok(sources.collect())
}

fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time, and a little that no other has.
fn fresh_id() -> Result<Id, BackupError> {
    let time = nbd_server::group::history::rfc3339(now_ms() / 1000 * 1000);
    let time: String = time.chars().filter(char::is_ascii_alphanumeric).collect();
    let random = uuid::Uuid::new_v4().simple().to_string();
    let id = format!("{time}-{}", random.get(..6).unwrap_or_default());
    Id::new(&id).map_err(|error| BackupError::Usage(error.to_string()))
}

/// All that the workers share.
struct Copy<'a> {
    repository: &'a Repository,
    group: &'a str,
    nbd: &'a Nbd,
    /// The pin that is copied.
    pin: &'a str,
    /// The pin of the parent, if the gateway has it.
    since: Option<String>,
    sources: &'a [Source],
    packs: &'a Packs,
    watch: &'a dyn Watch,
}

impl Copy<'_> {
    /// Copies all disks; returns where they are, and how many bytes were read.
    fn run(&self, jobs: usize) -> Result<(Vec<DiskOf>, u64), BackupError> {
        let parts: Vec<(usize, usize)> = self
            .sources
            .iter()
            .enumerate()
            .flat_map(|(disk, source)| {
                (0..pieces(source.size, REGION)).map(move |region| (disk, region))
            })
            .collect();
        let entries = Mutex::new(vec![Entry::Zeros; parts.len()]);
        let next = AtomicUsize::new(0);
        let work = || -> Result<u64, BackupError> {
            let mut worker = Worker::new(self);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((disk, region)) = parts.get(number) else {
                    return Ok(worker.read);
                };
                let copied = self.one(&mut worker, *disk, *region);
                if copied.is_err() {
                    // The others need not go on.
                    next.store(parts.len(), Ordering::Relaxed);
                }
                let mut entries = entries
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                if let Some(entry) = entries.get_mut(number) {
                    *entry = copied?;
                }
            }
        };
        let read = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
            let mut read = 0;
            let mut first = None;
            for worker in workers {
                match worker.join() {
                    Ok(Ok(bytes)) => read += bytes,
                    Ok(Err(error)) => first = first.or(Some(error)),
                    Err(_) => {
                        first = first.or(Some(std::io::Error::other("a worker has failed").into()))
                    }
                }
            }
            first.map_or(Ok(read), Err)
        })?;
        let entries = entries
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let disks = self.disks(&entries)?;
        self.packs.flush()?;
        Ok((disks, read))
    }

    fn one(
        &self,
        worker: &mut Worker<'_>,
        disk: usize,
        region: usize,
    ) -> Result<Entry, BackupError> {
        if self.watch.stop() {
            return Err(BackupError::Stopped);
        }
        let entry = worker.copy(disk, region)?;
        if let Some(source) = self.sources.get(disk) {
            let start = region as u64 * REGION;
            self.watch.done((source.size - start).min(REGION));
        }
        Ok(entry)
    }

    /// The lists of lists.
    fn disks(&self, entries: &[Entry]) -> Result<Vec<DiskOf>, BackupError> {
        let mut rest = entries;
        let mut disks = Vec::with_capacity(self.sources.len());
        for (number, source) in self.sources.iter().enumerate() {
            let (own, others) = rest.split_at(pieces(source.size, REGION).min(rest.len()));
            rest = others;
            let mut spans = Vec::with_capacity(pieces(source.size, SPAN));
            for (span, lists) in own.chunks(FAN).enumerate() {
                let before = source.before.as_ref().and_then(|disk| disk.spans.get(span));
                spans.push(self.packs.list(number, lists, before)?);
            }
            disks.push(DiskOf {
                name: source.name.clone(),
                size: source.size,
                spans,
            });
        }
        Ok(disks)
    }

    /// The regions of a disk in the parent.
    fn before(&self, disk: usize) -> Option<Regions<'_>> {
        let before = self.sources.get(disk)?.before.as_ref()?;
        Some(Regions::new(&self.repository.objects, self.group, before))
    }
}
