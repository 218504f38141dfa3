//! The audit: somebody else, on a connection of its own, looks whether all that was acknowledged is there.

use std::sync::atomic::Ordering;

use anyhow::anyhow;

use super::ledger::{Broken, Names, read_back, remembered};
use super::load::{Faults, Load};
use super::redis::Connection;
use super::{SERVICE, at};

/// Rows that are asked for at once.
const STEP: u64 = 256;

/// What an audit came to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Audit {
    /// Transactions that were looked at.
    pub rows: u64,
    pub faults: Faults,
}

/// Looks at the last `newest` acknowledged transactions of each connection; those of a load that goes on may become more meanwhile.
/// An error says that the audit could not be made.
pub(crate) fn audit(load: &Load, newest: u64) -> anyhow::Result<Audit> {
    let promised: Vec<(Names, u64)> = load
        .clients
        .iter()
        .map(|c| (c.names.clone(), c.acknowledged.load(Ordering::Relaxed)))
        .collect();
    at(&load.place, || look(&promised, newest))?
}

fn look(promised: &[(Names, u64)], newest: u64) -> anyhow::Result<Audit> {
    let mut to = Connection::open(SERVICE)?;
    let mut audit = Audit::default();
    for (names, last) in promised {
        let who = format!("audit of connection {}", names.connection);
        let counted = remembered(&mut to, names).and_then(|there| match last.checked_sub(there) {
            None | Some(0) => Ok(()),
            Some(transactions) => Err(Broken::Lost {
                transactions,
                found: format!("{last} were acknowledged, {there} are remembered"),
            }),
        });
        if let Err(broken) = counted {
            note(&mut audit, &who, &broken)?;
            // Its rows are gone with it, and counted.
            continue;
        }
        let mut from = last.saturating_sub(newest) + 1;
        while from <= *last {
            let end = (from + STEP - 1).min(*last);
            if let Err(broken) = read_back(&mut to, names, from..=end) {
                note(&mut audit, &who, &broken)?;
            }
            audit.rows += end + 1 - from;
            from = end + 1;
        }
    }
    Ok(audit)
}

fn note(audit: &mut Audit, who: &str, broken: &Broken) -> anyhow::Result<()> {
    // This connection was opened after all that was done to the guest: it is no witness of what became of the others.
    if let Broken::Connection(why) = broken {
        return Err(anyhow!("{who} could not be made: {why}"));
    }
    audit.faults.note(who, broken);
    Ok(())
}
