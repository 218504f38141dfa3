//! What a group says about itself.

use std::collections::BTreeMap;

use super::Group;
use super::barriers::Phase;
use super::disk::Disk;
use crate::control::api::{AttachmentStatus, DiskStatus, EpochTotals, GroupStatus, ModeName};
use crate::metrics::Kind;

impl Group {
    /// The state of the group at one moment.
    pub fn status(&self) -> GroupStatus {
        let core = self.shared.core();
        let barriers = &core.barriers;
        let mode = match barriers.phase() {
            Phase::Through | Phase::Backlog | Phase::Dormant { .. } => ModeName::Sync,
            Phase::Switching | Phase::Held | Phase::Draining { .. } | Phase::Reserved => {
                ModeName::Async
            }
        };
        let mut attachments = BTreeMap::new();
        for entry in core.entries.values() {
            let name = entry.instance.as_deref().unwrap_or("-");
            let status = attachments
                .entry((name.to_owned(), entry.kind() as u8))
                .or_insert_with(|| AttachmentStatus {
                    name: name.to_owned(),
                    kind: entry.kind(),
                    connections: 0,
                });
            status.connections += 1;
        }
        GroupStatus {
            name: self.shared.name.clone(),
            mode,
            generation: barriers.generation(),
            owner: barriers.owner().map(str::to_owned),
            holder: barriers.holder().map(|holder| holder.standby.clone()),
            holder_since: barriers.holder().map(|holder| holder.since),
            committed: barriers.committed(),
            applied: barriers.applied(),
            open: barriers.open(),
            bytes_held: self.shared.budget.held(),
            budget: self.shared.budget.limit(),
            sealed: barriers.sealed().0.saturating_sub(barriers.committed().0),
            backlog: barriers.committed().0.saturating_sub(barriers.applied().0),
            epochs: EpochTotals {
                count: self.shared.commits.count(),
                bytes: self.shared.commits.bytes(),
                blocks: self.shared.commits.blocks(),
            },
            attachments: attachments.into_values().collect(),
            history: self.history().map(|history| history.past.status()),
            last_error: self.trouble(),
            disks: self.shared.disks.iter().map(|disk| disk.status()).collect(),
        }
    }

    /// What fails now, and what of the storage below does not answer.
    fn trouble(&self) -> Option<String> {
        let disks = self.shared.disks.iter();
        let below = disks.filter_map(|disk| disk.image.trouble());
        let said = self.shared.last_error().into_iter();
        let all: Vec<String> = said.chain(self.place.trouble()).chain(below).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl Disk {
    fn status(&self) -> DiskStatus {
        let meter = &self.meter;
        let changes = [Kind::Write, Kind::Trim, Kind::WriteZeroes];
        let micros = |kinds: &[Kind]| kinds.iter().map(|kind| meter.micros(*kind)).sum();
        DiskStatus {
            name: self.name.clone(),
            size: self.image.size(),
            reads: meter.requests(Kind::Read),
            writes: changes.into_iter().map(|kind| meter.requests(kind)).sum(),
            bytes_read: meter.bytes(Kind::Read),
            bytes_written: meter.bytes(Kind::Write),
            flushes: meter.requests(Kind::Flush),
            errors: meter.errors().map(|(_, count)| count).sum(),
            in_flight: meter.in_flight(),
            read_us: micros(&[Kind::Read]),
            write_us: micros(&changes),
            flush_us: micros(&[Kind::Flush]),
        }
    }
}
