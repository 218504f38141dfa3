//! Runs that say nothing: a process that got no CPU for too long looks like one that is gone. Where a part was taken for lost by its
//! silence and no fault kept it silent, this machine was too busy.

use coordinator::report::Report;

use super::cells::{Cell, Cut, Fault, Phase};
use crate::lab::network::Host;
use crate::lab::{Site, Who};

/// A part was suspected by its silence although no fault kept it silent: the run says nothing of the fault.
#[derive(Debug, thiserror::Error)]
#[error(
    "a part was taken for lost by its silence when nothing was wrong: this machine is too busy"
)]
pub(super) struct TooBusy;

/// Whether source or standby suspected the other by its silence alone, since then.
pub(super) fn suspected_since(site: &Site, since: u64) -> bool {
    site.journal().iter().any(|(_, event)| {
        event.t_us > since
            && matches!(
                &event.report,
                Report::SourceLost { reason } | Report::StandbyLost { reason }
                    if reason.starts_with("nothing came")
            )
    })
}

/// Whether the cell itself makes one of the two silent to the other before its fault comes.
pub(super) fn begins_silent(cell: &Cell) -> bool {
    cell.phase == Phase::TakingOverFromSleeper
}

/// Whether the cell makes one of the two silent to the other.
pub(super) fn silences(cell: &Cell) -> bool {
    let one_of_them = |host| matches!(host, Host::Source | Host::Standby);
    begins_silent(cell)
        || match cell.fault {
            Fault::Freeze(victim) => {
                let parts = victim.parts();
                parts.contains(&Who::Source) || parts.contains(&Who::Standby)
            }
            Fault::PowerOff(host) => one_of_them(host),
            Fault::Cut(cut) | Fault::CutForGood(cut) => match cut {
                Cut::Isolate(host) => one_of_them(host),
                Cut::Link(a, b) | Cut::OneWay(a, b) => one_of_them(a) && one_of_them(b),
            },
            Fault::Kill(_)
            | Fault::Restart
            | Fault::Storage(_)
            | Fault::Clock(..)
            | Fault::Wake => false,
        }
}

#[cfg(test)]
mod tests {
    use super::super::cells;
    use super::*;

    #[test]
    fn only_faults_between_the_two_keep_them_silent() {
        let silent = |wanted: &str| {
            let cells = cells::all();
            let cell = cells.iter().find(|cell| cell.name().starts_with(wanted));
            cell.map(silences)
        };
        for cell in [
            "running:freeze/source-host/",
            "running:freeze/standby-host+gateway/",
            "running:power-off/source/",
            "running:cut-one-way/standby-to-source/",
            "running:isolate/standby/",
            "takeover-from-sleeper:wake/",
        ] {
            assert_eq!(silent(cell), Some(true), "{cell}");
        }
        for cell in [
            "running:kill/source-host/",
            "running:freeze/gateway/",
            "running:freeze/source-qemu/",
            "running:isolate/storage/",
            "running:cut/standby-storage/",
            "running:lasting-cut/source-storage/",
            "takeover:cut/standby-storage/",
        ] {
            assert_eq!(silent(cell), Some(false), "{cell}");
        }
    }
}
