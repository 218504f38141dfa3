//! `epochgate log recover`: takes a damaged log back to an earlier epoch, and says before what is lost with that. `log verify` shares the
//! words.

use std::path::Path;
use std::process::ExitCode;

use epoch_log::rollback::{self, Rollback, RollbackError};
use epoch_log::{Epoch, LogError, Salvage};

use crate::cli::RecoverArgs;
use crate::exit::usage;
use crate::output::{bytes, utc};

/// Epochs that are listed one by one.
const LISTED: usize = 20;

pub(crate) fn recover(args: &RecoverArgs) -> anyhow::Result<ExitCode> {
    let to = Epoch(args.to);
    let rollback = if args.yes {
        rollback::recover(&args.log, to)
    } else {
        rollback::plan(&args.log, to)
    };
    let rollback = rollback.map_err(explain)?;
    if args.json {
        println!("{}", json(&rollback, args.yes)?);
    } else {
        print!("{}", said(&args.log, &rollback, args.yes));
    }
    if args.yes || args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("epochgate: nothing was changed; say --yes to lose this, or --dry-run to only look");
    Ok(ExitCode::FAILURE)
}

/// The rollback as JSON, with whether it was carried out.
fn json(rollback: &Rollback, done: bool) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(rollback)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("done".to_owned(), done.into());
    }
    Ok(value.to_string())
}

/// What is no log, and one that is in use, is the user's mistake; what can't be done is not.
fn explain(error: RollbackError) -> anyhow::Error {
    match error {
        RollbackError::Log(error @ (LogError::NotALog { .. } | LogError::InUse { .. })) => {
            usage(error)
        }
        other => other.into(),
    }
}

fn said(dir: &Path, rollback: &Rollback, done: bool) -> String {
    let Rollback { found, to, .. } = rollback;
    let mut text = format!(
        "log of group {}: {} to epoch {to}; the newest committed is {}\n",
        found.group,
        if done { "recovered" } else { "recovery" },
        found.committed
    );
    text += &lost(found, *to);
    text += &format!(
        "  the images hold epoch {} for certain; the gateway may have been bringing later ones into them when it ended: check\n  \
           the file systems before you use them\n",
        found.applied
    );
    let (will, are) = if done {
        ("is", "are")
    } else {
        ("will be", "will be")
    };
    text += &format!(
        "  the generation {will} {}: whatever is attached is fenced, and memory that a standby holds is void\n",
        rollback.generation
    );
    text += &format!(
        "  the old segments {are} kept as {}\n",
        dir.join(rollback.set_aside.first().map_or("", String::as_str))
            .display()
    );
    if let Some(last) = rollback.set_aside.get(1..).and_then(<[_]>::last) {
        text += &format!("    to {last}\n");
    }
    text
}

/// What is lost with a recovery to `to`, line by line.
pub(crate) fn lost(found: &Salvage, to: Epoch) -> String {
    let mut text = String::new();
    match found.lost(to) {
        0 => text += "  no epoch that is known to be committed is lost\n",
        1 => text += &format!("  lost: epoch {}\n", found.committed),
        count => {
            text += &format!(
                "  lost: {count} epochs, {} to {}\n",
                to.next(),
                found.committed
            );
        }
    }
    if found.may_hide_more {
        text +=
            "  the damage may hide that later epochs were committed, too: those are lost with it\n";
    }
    let gone = || found.epochs.iter().filter(|left| left.epoch > to);
    for left in gone().take(LISTED) {
        let disks: Vec<String> = left
            .disks
            .iter()
            .map(|disk| {
                format!(
                    "disk {} {} written, {} cleared",
                    disk.disk,
                    bytes(disk.written),
                    bytes(disk.cleared)
                )
            })
            .collect();
        text += &format!(
            "    epoch {}  {}{}\n",
            left.epoch,
            if disks.is_empty() {
                "nothing of its data can be read".to_owned()
            } else {
                disks.join(", ")
            },
            if left.whole {
                ""
            } else {
                " (at least: it is damaged)"
            }
        );
    }
    if gone().count() > LISTED {
        text += &format!("    and {} more\n", gone().count() - LISTED);
    }
    if let Some(written) = found.written_at.filter(|_| found.lost(to) > 0) {
        text += &match found.last_known_at {
            Some(since) => format!(
                "  by the times of the files it was written between {} and {}\n",
                utc(since),
                utc(written)
            ),
            None => format!(
                "  by the time of its file the last of it was written at {}\n",
                utc(written)
            ),
        };
    }
    text
}

/// What can be done about a damaged log, for `log verify`.
pub(crate) fn advice(dir: &Path, found: Option<&Salvage>) -> String {
    let copy = "  - put a copy of the whole directory in its place that is no older than the images, if the storage below has one\n";
    let Some(found) = found else {
        return format!(
            "what can be done:\n{copy}  - no segment has a readable header, so nothing can be recovered from the log itself; without it,\n    \
                move the directory away: the gateway then begins a new log, and what the images do not hold is lost\n"
        );
    };
    format!(
        "what can be done (the gateway refuses to start until one of them is):\n{copy}  \
           - go on from epoch {}:  epochgate log recover --to {} {}  (it shows what is lost, and asks for --yes)\n{}",
        found.last,
        found.last,
        dir.display(),
        lost(found, found.last)
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use epoch_log::{
        Content, DiskChange, DiskIdentity, EpochLeft, EpochLog, Extent, Generation, LogOptions,
    };
    use nbd_server::group::{DiskConfig, GroupConfig};

    /// A group whose log has three committed epochs, none of them in the image, and damage in the second.
    pub(crate) fn damaged_group(dir: &Path) -> anyhow::Result<GroupConfig> {
        let (image, log) = (dir.join("image"), dir.join("log"));
        let file = std::fs::File::create(&image)?;
        file.set_len(1 << 20)?;
        let identity = DiskIdentity {
            name: "root".to_owned(),
            size: 1 << 20,
            file_id: file.metadata()?.ino(),
        };
        let (mut open, _) =
            EpochLog::open_or_create(&log, "vm1", &[identity], LogOptions::default())?;
        for epoch in 1..=3 {
            let data = [u8::try_from(epoch)? + 0xa0; 4096];
            let extent = Extent {
                disk: 0,
                offset: epoch * 8192,
                len: 4096,
                content: Content::Data(&data),
            };
            open.append(Generation(0), Epoch(epoch), &[extent])?;
            open.commit(Generation(0), Epoch(epoch), None)?;
        }
        drop(open);
        let segment = log.join("0000000000000001.seg");
        let bytes = std::fs::read(&segment)?;
        let second = bytes.windows(64).position(|some| some == [0xa2; 64]);
        let at = second.ok_or_else(|| anyhow::anyhow!("no data of epoch 2"))?;
        let file = std::fs::File::options().write(true).open(&segment)?;
        file.write_all_at(b"bad", at as u64)?;
        let disk = DiskConfig {
            name: "root".to_owned(),
            image,
            read_only: false,
            export: None,
        };
        Ok(GroupConfig::new("vm1", log, vec![disk]))
    }

    fn args(log: &Path, to: u64) -> RecoverArgs {
        RecoverArgs {
            log: log.to_owned(),
            to,
            yes: false,
            dry_run: false,
            json: false,
        }
    }

    #[test]
    fn a_log_is_taken_back_only_when_that_is_asked_for() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let group = damaged_group(dir.path())?;
        let segment = group.log.join("0000000000000001.seg");
        let before = std::fs::read(&segment)?;
        // Exit codes have no equality.
        let code = |code: anyhow::Result<ExitCode>| code.map(|code| format!("{code:?}"));
        let (good, bad) = (
            format!("{:?}", ExitCode::SUCCESS),
            format!("{:?}", ExitCode::FAILURE),
        );
        assert_eq!(code(recover(&args(&group.log, 1)))?, bad);
        let dry = RecoverArgs {
            dry_run: true,
            json: true,
            ..args(&group.log, 1)
        };
        assert_eq!(code(recover(&dry))?, good);
        assert!(recover(&args(&group.log, 2)).is_err());
        assert_eq!(std::fs::read(&segment)?, before);

        let yes = RecoverArgs {
            yes: true,
            ..args(&group.log, 1)
        };
        assert_eq!(code(recover(&yes))?, good);
        assert!(recover(&yes).is_err(), "it is whole now");
        assert_eq!(
            std::fs::read(group.log.join("0000000000000001.seg.damaged"))?,
            before
        );

        let opened = nbd_server::group::Group::open(&group, &mut |_| {})?;
        let status = opened.status();
        assert_eq!((status.committed, status.applied), (Epoch(1), Epoch(1)));
        assert_eq!(status.holder, None);
        let disk = &group
            .disks
            .first()
            .ok_or_else(|| anyhow::anyhow!("no disk"))?;
        let image = std::fs::read(&disk.image)?;
        assert_eq!(image.get(8192..8196), Some(&[0xa1; 4][..]));
        assert_eq!(image.get(16384..16388), Some(&[0; 4][..]));
        Ok(())
    }

    #[test]
    fn what_is_no_log_is_wrong_usage() {
        let error = recover(&args(Path::new("/nowhere"), 1)).map(drop);
        let usage = error.err().is_some_and(|e| e.is::<crate::exit::Usage>());
        assert!(usage);
    }

    fn found() -> Salvage {
        let left = |epoch, whole| EpochLeft {
            epoch: Epoch(epoch),
            whole,
            disks: vec![DiskChange {
                disk: "root".to_owned(),
                written: 4096 * epoch,
                cleared: 0,
            }],
        };
        Salvage {
            group: "vm1".to_owned(),
            committed: Epoch(9),
            applied: Epoch(5),
            generation: Generation(3),
            last: Epoch(7),
            may_hide_more: false,
            epochs: vec![left(6, true), left(7, true), left(8, false), left(9, true)],
            last_known_at: Some(1_764_058_620),
            written_at: Some(1_764_058_800),
        }
    }

    #[test]
    fn what_is_lost_is_said_to_the_byte() {
        let text = lost(&found(), Epoch(7));
        assert!(text.contains("lost: 2 epochs, 8 to 9\n"), "{text}");
        assert!(
            text.contains("epoch 8  disk root 32.00 KiB written, 0 B cleared (at least"),
            "{text}"
        );
        assert!(!text.contains("epoch 7"), "{text}");
        assert!(
            text.contains("between 2025-11-25 08:17:00 UTC and 2025-11-25 08:20:00 UTC"),
            "{text}"
        );
        assert!(lost(&found(), Epoch(9)).contains("no epoch"));
    }

    #[test]
    fn the_advice_is_a_command_to_copy() {
        let text = advice(Path::new("/srv/vm1.epochlog"), Some(&found()));
        assert!(
            text.contains("epochgate log recover --to 7 /srv/vm1.epochlog "),
            "{text}"
        );
        let text = advice(Path::new("/srv/vm1.epochlog"), None);
        assert!(!text.contains("recover --to"), "{text}");
    }
}
