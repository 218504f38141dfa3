//! `epochgate log list | pin | unpin | freeze | thaw` and `epochgate rewind`: the past of a group, through the gateway's control socket.

use std::io::Write;
use std::process::ExitCode;

use nbd_server::control::api::{Frozen, HistoryReply, Pin, Point};
use nbd_server::group::history::rfc3339;

use crate::cli::ControlArgs;
use crate::cli::history::{FreezeArgs, ListArgs, PinArgs, RewindArgs, ThawArgs, UnpinArgs};
use crate::commands::export::ask;
use crate::output::bytes;

pub(crate) fn list(args: &ListArgs) -> anyhow::Result<ExitCode> {
    let mut since = args.since.clone();
    let mut left = args.limit;
    let mut all: Option<HistoryReply> = None;
    let mut out = std::io::stdout().lock();
    loop {
        let page = ask(&args.control.control, async |client| {
            client.history(&args.group, since.as_ref(), left).await
        })?;
        left = left.map(|left| left.saturating_sub(page.points.len()));
        since = page.more.map(Point::Epoch);
        if args.control.json {
            match &mut all {
                None => all = Some(page),
                Some(all) => all.points.extend(page.points),
            }
        } else {
            print_page(&mut out, &page)?;
            all = Some(page);
        }
        if since.is_none() || left == Some(0) {
            break;
        }
    }
    let Some(mut all) = all else {
        return Ok(ExitCode::SUCCESS);
    };
    all.more = match since {
        Some(Point::Epoch(epoch)) => Some(epoch),
        _ => None,
    };
    if args.control.json {
        writeln!(out, "{}", serde_json::to_string(&all)?)?;
    } else {
        let status = &all.status;
        writeln!(
            out,
            "about {} points since {} (epoch {}), {} in {} files{}{}{}",
            status.points,
            rfc3339(status.oldest_time_ms),
            status.oldest,
            bytes(status.bytes),
            status.runs,
            match status.cold_runs {
                0 => String::new(),
                runs => format!(
                    " and {} of {runs} of them in cold storage",
                    bytes(status.cold_bytes)
                ),
            },
            match &status.frozen {
                Some(frozen) => format!("; frozen {}", until(frozen)),
                None => String::new(),
            },
            if all.more.is_some() {
                "; there are later ones"
            } else {
                ""
            }
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_page(out: &mut impl Write, page: &HistoryReply) -> std::io::Result<()> {
    for point in &page.points {
        let pins = page
            .status
            .pins
            .iter()
            .filter(|pin| pin.point.epoch == point.epoch);
        let pins: Vec<String> = pins.map(|pin| format!("pin={}", pin.name)).collect();
        let until = if point.until > point.epoch {
            format!(" to {}", point.until)
        } else {
            String::new()
        };
        writeln!(
            out,
            "{:<24}  epoch {}{until}  {}",
            rfc3339(point.time_ms),
            point.epoch,
            pins.join(" ")
        )?;
    }
    Ok(())
}

pub(crate) fn pin(args: &PinArgs) -> anyhow::Result<ExitCode> {
    let pin = ask(&args.control.control, async |client| {
        client.pin(&args.group, &args.name, args.at.as_ref()).await
    })?;
    say(&args.control, &pin, "is kept as")
}

pub(crate) fn unpin(args: &UnpinArgs) -> anyhow::Result<ExitCode> {
    let pin = ask(&args.control.control, async |client| {
        client.unpin(&args.group, &args.name).await
    })?;
    say(&args.control, &pin, "is no longer kept as")
}

fn say(args: &ControlArgs, pin: &Pin, what: &str) -> anyhow::Result<ExitCode> {
    if args.json {
        println!("{}", serde_json::to_string(pin)?);
    } else {
        println!(
            "epoch {} of {} {what} '{}'",
            pin.point.epoch,
            rfc3339(pin.point.time_ms),
            pin.name
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn freeze(args: &FreezeArgs) -> anyhow::Result<ExitCode> {
    let span = args.span.map(|span| span.0);
    let frozen = ask(&args.control.control, async |client| {
        client.freeze(&args.group, span).await
    })?;
    if args.control.json {
        println!("{}", serde_json::to_string(&frozen)?);
    } else {
        println!(
            "The history of {} is frozen {}: nothing goes for its age or size.",
            args.group,
            until(&frozen)
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn thaw(args: &ThawArgs) -> anyhow::Result<ExitCode> {
    let reply = ask(&args.control.control, async |client| {
        client.thaw(&args.group).await
    })?;
    if args.control.json {
        println!("{}", serde_json::to_string(&reply)?);
    } else {
        let was = match reply.was {
            Some(_) => "is no longer frozen: what is due goes",
            None => "was not frozen",
        };
        println!("The history of {} {was}.", args.group);
    }
    Ok(ExitCode::SUCCESS)
}

/// How long a freeze holds, in words.
pub(crate) fn until(frozen: &Frozen) -> String {
    match frozen.until_ms {
        Some(until) => format!("until {}", rfc3339(until)),
        None => "until it is thawed".to_owned(),
    }
}

pub(crate) fn rewind(args: &RewindArgs) -> anyhow::Result<ExitCode> {
    let spinner = indicatif::ProgressBar::new_spinner();
    if !args.control.json {
        spinner.set_message(format!("{} goes back to {}", args.group, args.to));
        spinner.enable_steady_tick(std::time::Duration::from_millis(120));
    }
    let rewound = ask(&args.control.control, async |client| {
        client.rewind(&args.group, &args.to, args.force).await
    });
    spinner.finish_and_clear();
    let rewound = rewound?;
    if args.control.json {
        println!("{}", serde_json::to_string(&rewound)?);
    } else {
        println!(
            "{} is as it was at epoch {}, which is epoch {} from now on; {} were put back. What was undone stays in the history.",
            args.group,
            rewound.to,
            rewound.epoch,
            bytes(rewound.bytes)
        );
    }
    Ok(ExitCode::SUCCESS)
}
