//! What is done about a verdict. [`guard`] decides whether, as a plain state machine; [`order`] puts an action into the words of a command or a
//! request; [`carry_out`] does it. Nothing is done that is not configured, and `notify` alone is by default.

pub mod carry_out;
pub mod guard;
pub mod order;

use std::path::PathBuf;

use nbd_server::group::history::TimeSpan;
use serde::{Deserialize, Serialize};

use crate::judge::LASTING;

/// Something that can be done about a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "do", deny_unknown_fields)]
pub enum Action {
    /// Says it in the log, the events and the metrics.
    Notify,
    /// Runs a program, which finds the verdict as JSON on its standard input and in variables `EPOCHGATE_…`.
    Command {
        /// The program and its arguments.
        run: Vec<String>,
    },
    /// Sends the verdict as JSON, with POST.
    Webhook {
        /// `http://host:port/path`.
        url: String,
    },
    /// Gives the last epoch before anything spoke against the VM a name, so that it stays.
    PinHealthy,
    /// Keeps all of the history from now on, whatever its age and size, until somebody thaws it.
    FreezeHistory {
        /// It ends by itself after this time.
        #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
        span: Option<TimeSpan>,
    },
    /// Resets the VM, as its reset button would.
    Restart,
    /// Sets the VM back to the last epoch before anything spoke against it.
    Rewind {
        /// The memory, too: it goes on from there. Without, it boots from the disks as they were.
        #[serde(default)]
        with_memory: bool,
        /// Starts the VM afterwards, such as `["systemctl", "start", "vm1"]`. Its memory is where `EPOCHGATE_STATE` says.
        #[serde(default)]
        then: Vec<String>,
    },
    /// Moves the VM to its standby, when the host is the suspect.
    SwitchOver,
}

impl Action {
    /// In one word, as in configurations and events.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Command { .. } => "command",
            Self::Webhook { .. } => "webhook",
            Self::PinHealthy => "pin_healthy",
            Self::FreezeHistory { .. } => "freeze_history",
            Self::Restart => "restart",
            Self::Rewind { .. } => "rewind",
            Self::SwitchOver => "switch_over",
        }
    }

    /// Whether it stops or moves the VM: what the guard counts.
    #[must_use]
    pub fn is_intrusive(&self) -> bool {
        matches!(self, Self::Restart | Self::Rewind { .. } | Self::SwitchOver)
    }
}

/// What is done when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ActionsConfig {
    /// When a VM is found faulty, in this order.
    pub faulty: Vec<Action>,
    /// When a VM does what the model has never seen.
    pub strange: Vec<Action>,
    /// Only says what would be done.
    pub dry_run: bool,
    /// A verdict must have lasted so long before the VM is stopped or moved for it. What comes before that in the list is done at once.
    pub patience: TimeSpan,
    /// So many actions that stop or move the VM, at most, in an hour.
    pub most_per_hour: u32,
    /// After one of them so long nothing else is done about the VM: it has to come to rest.
    pub rest: TimeSpan,
    /// One that takes longer than this has failed.
    pub timeout: TimeSpan,
}

impl Default for ActionsConfig {
    fn default() -> Self {
        Self {
            faulty: vec![Action::Notify],
            strange: vec![Action::Notify],
            dry_run: false,
            patience: LASTING,
            most_per_hour: 2,
            rest: TimeSpan(120_000),
            timeout: TimeSpan(60_000),
        }
    }
}

impl ActionsConfig {
    /// The first thing that is wrong, in words.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, reach: &Reach) -> Result<(), String> {
        for action in self.faulty.iter().chain(&self.strange) {
            match action {
                Action::Command { run } if run.is_empty() => {
                    return Err(
                        "the action 'command' needs 'run', a program with its arguments".to_owned(),
                    );
                }
                Action::Webhook { url } => {
                    order::check_url(url)?;
                }
                Action::PinHealthy if reach.gateway.is_none() => {
                    return Err(needs("pin_healthy", "gateway"));
                }
                Action::FreezeHistory { .. } if reach.gateway.is_none() => {
                    return Err(needs("freeze_history", "gateway"));
                }
                Action::Rewind { .. } if reach.gateway.is_none() => {
                    return Err(needs("rewind", "gateway"));
                }
                Action::Rewind {
                    with_memory: true, ..
                } if reach.memory.is_none() => {
                    return Err(needs("rewind with_memory", "memory"));
                }
                Action::Rewind {
                    with_memory: true, ..
                } if reach.state.is_none() => {
                    return Err(needs("rewind with_memory", "state"));
                }
                _ => {}
            }
        }
        if self.strange.iter().any(Action::is_intrusive) {
            return Err(
                "what was never seen before is no reason to stop a VM: 'strange' can't have restart, rewind or switch_over"
                    .to_owned(),
            );
        }
        if self.most_per_hour == 0 && self.faulty.iter().any(Action::is_intrusive) {
            return Err(
                "most_per_hour is 0: nothing could be done; take the actions out, or set dry_run"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn needs(action: &str, what: &str) -> String {
    format!("the action '{action}' needs '{what}' in the configuration")
}

/// How a VM and what keeps it can be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reach {
    /// The VM's name, and that of its group unless `group` is another.
    pub vm: String,
    /// The group of its disks.
    pub group: Option<String>,
    /// Control socket of the gateway.
    pub gateway: Option<PathBuf>,
    /// The QMP socket of the VM for whoever watches it. Whoever does leaves it before something is done there.
    pub qmp: Option<PathBuf>,
    /// Where the source has its sockets.
    pub runtime_dir: Option<PathBuf>,
    /// Directory of the memory history.
    pub memory: Option<PathBuf>,
    /// Directory for the memory of a VM that is set back: each time one in it.
    pub state: Option<PathBuf>,
}

impl Reach {
    /// The group of its disks.
    #[must_use]
    pub fn group(&self) -> &str {
        self.group.as_deref().unwrap_or(&self.vm)
    }
}
