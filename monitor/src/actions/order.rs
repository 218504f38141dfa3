//! Actions in the words of a command line or a request. Plain values in, plain values out.

use std::ffi::OsString;
use std::path::PathBuf;

use nbd_server::group::history::rfc3339;

use super::{Action, Reach};
use crate::judge::Verdict;

/// One thing to do. A failure ends what an action is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// Runs `epochgate` with these arguments.
    Epochgate(Vec<OsString>),
    /// Runs a program that the administrator named.
    Program {
        /// The program and its arguments.
        words: Vec<String>,
        /// Where the memory is with which the VM is to be started: in `EPOCHGATE_STATE`.
        state: Option<PathBuf>,
    },
    /// Sends the verdict there.
    Post(Address),
    /// Resets the VM.
    Reset,
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Host and port to connect to.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

/// Takes apart the URL of a webhook.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_url(url: &str) -> Result<Address, String> {
    if url.starts_with("https://") {
        return Err(format!(
            "the webhook {url}: TLS is not spoken here; take the action 'command' with curl, or a proxy on this host"
        ));
    }
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("the webhook '{url}' is no URL: write http://host:port/path"))?;
    let (host, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if name.is_empty() || host.contains('@') || !plain(host) || !plain(path) {
        return Err(format!(
            "the webhook '{url}' names no host: write http://host:port/path"
        ));
    }
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(Address {
        authority: if has_port {
            host.to_owned()
        } else {
            format!("{host}:80")
        },
        path: path.to_owned(),
    })
}

/// The name of the pin that keeps the last sound epoch: the same for the same moment, so that it is made once.
#[must_use]
pub fn pin_name(sound_ms: u64) -> String {
    format!("healthy-{sound_ms}")
}

/// The directory, among the states, of the one to which a VM is set back for this verdict.
#[must_use]
pub fn state_name(verdict: &Verdict) -> String {
    format!("rewound-{}", verdict.at_ms)
}

/// What an action is made of. Empty for those that are only said, and for those that lack what [`super::ActionsConfig::check`] asks for.
#[must_use]
pub fn orders(action: &Action, verdict: &Verdict, reach: &Reach) -> Vec<Order> {
    match action {
        Action::Notify => Vec::new(),
        Action::Command { run } => vec![Order::Program {
            words: run.clone(),
            state: None,
        }],
        Action::Webhook { url } => check_url(url).map(Order::Post).into_iter().collect(),
        Action::Restart => vec![Order::Reset],
        Action::PinHealthy => pin(verdict, reach).into_iter().collect(),
        Action::FreezeHistory { span } => {
            let mut args = words(&["log", "freeze", reach.group()]);
            if let Some(span) = span {
                args.extend(words(&["--for", &span.to_string()]));
            }
            args.extend(control(reach));
            vec![Order::Epochgate(args)]
        }
        Action::SwitchOver => {
            let mut args = words(&["switchover", &reach.vm]);
            if let Some(dir) = &reach.runtime_dir {
                args.extend([OsString::from("--runtime-dir"), dir.into()]);
            }
            vec![Order::Epochgate(args)]
        }
        Action::Rewind { with_memory, then } => rewind(verdict, reach, *with_memory, then),
    }
}

fn pin(verdict: &Verdict, reach: &Reach) -> Option<Order> {
    let sound = verdict.sound_until_ms?;
    let at = format!("time={}", rfc3339(sound));
    let mut args = words(&["log", "pin", reach.group(), &pin_name(sound), "--at", &at]);
    args.extend(control(reach));
    Some(Order::Epochgate(args))
}

fn rewind(verdict: &Verdict, reach: &Reach, with_memory: bool, then: &[String]) -> Vec<Order> {
    let Some(sound) = verdict.sound_until_ms else {
        return Vec::new();
    };
    let to = format!("time={}", rfc3339(sound));
    let mut args = words(&["rewind", reach.group(), "--to", &to, "--force"]);
    args.extend(control(reach));
    let mut state = None;
    if with_memory {
        // A state that was started from is of no use again: each has a directory of its own.
        state = reach
            .state
            .as_ref()
            .map(|dir| dir.join(state_name(verdict)));
        args.push("--with-memory".into());
        for (option, dir) in [("--memory", &reach.memory), ("--state", &state)] {
            if let Some(dir) = dir {
                args.extend([OsString::from(option), dir.into()]);
            }
        }
    }
    let mut orders = vec![Order::Epochgate(args)];
    if !then.is_empty() {
        let words = then.to_vec();
        orders.push(Order::Program { words, state });
    }
    orders
}

fn control(reach: &Reach) -> Vec<OsString> {
    reach
        .gateway
        .iter()
        .flat_map(|path| [OsString::from("--control"), path.into()])
        .collect()
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use nbd_server::group::history::TimeSpan;

    use super::*;
    use crate::judge::Health;

    #[test]
    fn webhooks_are_taken_apart_or_refused() {
        let address = |authority: &str, path: &str| {
            Ok(Address {
                authority: authority.to_owned(),
                path: path.to_owned(),
            })
        };
        assert_eq!(check_url("http://a:81/b?c"), address("a:81", "/b?c"));
        assert_eq!(check_url("http://a"), address("a:80", "/"));
        for bad in [
            "",
            "a",
            "https://a/",
            "http://",
            "http:///x",
            "http://:80/",
            "http://a b/",
            "http://a/\r\nX: y",
            "http://me@a/",
        ] {
            assert!(check_url(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_rewind_goes_to_the_sound_moment_and_starts_the_vm() {
        let verdict = Verdict {
            health: Health::Faulty,
            at_ms: 2_000,
            score: 1.0,
            confidence: 1.0,
            kind: None,
            reasons: Vec::new(),
            sound_until_ms: Some(1_000),
        };
        let reach = Reach {
            vm: "vm1".to_owned(),
            gateway: Some("/g".into()),
            memory: Some("/m".into()),
            state: Some("/s".into()),
            ..Reach::default()
        };
        let then = vec!["start".to_owned()];
        let action = Action::Rewind {
            with_memory: true,
            then: then.clone(),
        };
        let line = "rewind vm1 --to time=1970-01-01T00:00:01Z --force --control /g --with-memory --memory /m --state /s/rewound-2000";
        assert_eq!(
            orders(&action, &verdict, &reach),
            [
                Order::Epochgate(line.split(' ').map(OsString::from).collect()),
                Order::Program {
                    words: then,
                    state: Some("/s/rewound-2000".into())
                }
            ]
        );
        // Whether anybody knows when it was sound or not.
        let freeze = Action::FreezeHistory {
            span: Some(TimeSpan(3_600_000)),
        };
        let line = "log freeze vm1 --for 1h --control /g";
        let args = line.split(' ').map(OsString::from).collect();
        let unsound = Verdict {
            sound_until_ms: None,
            ..verdict
        };
        assert_eq!(orders(&freeze, &unsound, &reach), [Order::Epochgate(args)]);
        assert!(orders(&action, &unsound, &reach).is_empty());
        assert!(orders(&Action::PinHealthy, &unsound, &reach).is_empty());
    }
}
