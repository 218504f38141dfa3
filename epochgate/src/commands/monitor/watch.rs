//! `epochgate monitor watch`: one VM, until SIGTERM or SIGINT. SIGHUP says that it is well as it is.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use monitor::actions::Reach;
use monitor::actions::carry_out::Hands;
use monitor::judge::Health;
use monitor::model::Model;
use monitor::watch::{Event, Now, Options, Orders, Outcome, Settings, Tell, Told, watch_vm};
use nbd_server::group::history::{TimeSpan, now_ms, rfc3339};
use nbd_server::metrics::{MetricsAddress, MetricsServer};
use tokio::sync::{mpsc, watch};

use super::{Target, watch_metrics};
use crate::cli::monitor::WatchArgs;
use crate::config_file;
use crate::exit::{Usage, usage};
use crate::status_socket::{StatusSocket, prepare_private_dir, prepare_runtime_dir};
use crate::{runtime, service};

pub(crate) fn run(args: &WatchArgs) -> anyhow::Result<ExitCode> {
    let target = Target::of(&args.vm)?;
    let settings = settings(args)?;
    let reach = reach(&target, &settings);
    settings.check(&reach).map_err(Usage)?;
    let model = match &settings.model {
        Some(path) => Model::load(path).map_err(usage)?,
        None => Model::shipped()?,
    };
    let rule = settings.rule(&model.header().verdict);
    if args.check {
        println!("the settings are right");
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(states) = &settings.state {
        prepare_private_dir(states, "directory for states", "state")?;
    }
    let hands = Hands {
        epochgate: std::env::current_exe().context("this program's own path is not known")?,
        reach,
        limit: settings.actions.timeout.duration(),
    };
    let options = Options {
        interval: settings.interval.duration(),
        rule,
        actions: settings.actions.clone(),
        hands,
    };
    let address: Option<MetricsAddress> = match &settings.metrics {
        Some(text) => Some(text.parse().map_err(usage)?),
        None => None,
    };
    // What watches must not be felt: the thread that samples is enough.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the async runtime can't be started")?;
    runtime.block_on(watch(target, Arc::new(model), options, address, args.json))
}

async fn watch(
    target: Target,
    model: Arc<Model>,
    options: Options,
    metrics: Option<MetricsAddress>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let stop = runtime::stop_signals()?;
    let mut hangup = runtime::hangup_signal()?;
    let (now, at_present) = watch::channel(Now::new(&target.name, now_ms()));
    prepare_runtime_dir(&target.runtime_dir)?;
    let answer = at_present.clone();
    let _socket = StatusSocket::start(&target.runtime_dir, "monitor", &target.name, move || {
        serde_json::to_vec(&*answer.borrow()).unwrap_or_default()
    })
    .await?;
    let _metrics = match &metrics {
        Some(address) => {
            let page = move || watch_metrics::page(&at_present.borrow());
            Some(MetricsServer::start(address, Arc::new(page))?)
        }
        None => None,
    };
    let (events, mut told) = mpsc::unbounded_channel();
    let (again, anew) = watch::channel(0);
    let tell = Tell { now, events };
    let orders = Orders { stop, anew };
    service::ready(&format!("watches {}", target.name));
    let watching = watch_vm(|| target.watched(), model, options, tell, orders);
    tokio::pin!(watching);
    loop {
        tokio::select! {
            biased;
            Some(told) = told.recv() => say(&told, json),
            _ = hangup.recv() => {
                tracing::info!("what {} does now is its usual", target.name);
                again.send_modify(|count| *count += 1);
            }
            () = &mut watching => break,
        }
    }
    while let Ok(last) = told.try_recv() {
        say(&last, json);
    }
    service::stopping();
    Ok(ExitCode::SUCCESS)
}

fn settings(args: &WatchArgs) -> anyhow::Result<Settings> {
    let mut settings: Settings = match &args.settings {
        Some(file) => config_file::load(file)?,
        None => Settings::default(),
    };
    if let Some(interval) = args.interval {
        settings.interval = TimeSpan(u64::try_from(interval.as_millis()).unwrap_or(u64::MAX));
    }
    settings.model = args.model.clone().or(settings.model);
    settings.metrics = args.metrics.clone().or(settings.metrics);
    settings.actions.dry_run |= args.dry_run;
    Ok(settings)
}

fn reach(target: &Target, settings: &Settings) -> Reach {
    let (gateway, group): (Option<PathBuf>, _) = target.gateway.clone().unzip();
    Reach {
        vm: target.name.clone(),
        group,
        gateway,
        qmp: None,
        runtime_dir: Some(target.runtime_dir.clone()),
        memory: settings.memory.clone(),
        state: settings.state.clone(),
    }
}

/// A reader that went away is no reason to watch no longer.
fn say(told: &Told, json: bool) {
    let line = if json {
        serde_json::to_string(told).unwrap_or_default()
    } else {
        in_words(told)
    };
    let _gone = writeln!(std::io::stdout().lock(), "{line}");
}

fn in_words(told: &Told) -> String {
    let what = match &told.event {
        Event::Watching { pid: Some(pid) } => format!("is watched (QEMU {pid})"),
        Event::Watching { pid: None } => "is watched".to_owned(),
        Event::Lost { reason } => format!("can't be seen: {reason}"),
        Event::Verdict(verdict) => {
            let mut text = match verdict.health {
                Health::Healthy => "is healthy".to_owned(),
                Health::Unknown => "can't be judged: too little is measured".to_owned(),
                Health::Strange => "does what was never seen before".to_owned(),
                Health::Faulty => match &verdict.kind {
                    Some(kind) => format!("is FAULTY, most like {kind}"),
                    None => "is FAULTY".to_owned(),
                },
            };
            if verdict.health != Health::Unknown {
                let (score, confidence) = (verdict.score, verdict.confidence);
                text.push_str(&format!(" (score {score:.2}, confidence {confidence:.2})"));
            }
            if matches!(verdict.health, Health::Faulty | Health::Strange) {
                for reason in &verdict.reasons {
                    text.push_str(&format!("\n    {reason}"));
                }
                if let Some(sound) = verdict.sound_until_ms {
                    text.push_str(&format!("\n    it was sound at {}", rfc3339(sound)));
                }
            }
            text
        }
        Event::Action {
            action,
            outcome,
            reason,
        } => {
            let outcome = match outcome {
                Outcome::Done => "was done",
                Outcome::Failed => "FAILED",
                Outcome::HeldBack => "was not done",
                Outcome::Would => "would be done, were it not a dry run",
            };
            match reason {
                Some(reason) => format!("{action} {outcome}: {reason}"),
                None => format!("{action} {outcome}"),
            }
        }
    };
    format!("{}  {}  {what}", rfc3339(told.t_ms), told.vm)
}
