//! Whether something may be done now: never two at once, what touches the VM only when the verdict has lasted, so many in an hour, and a rest
//! after each. Plain values in, plain values out.
//!
//! ```text
//! verdict ─▶ ask ─▶ actions up to the first that touches the VM
//!                   the others ─▶ patience ─▶ go_on ─▶ they, too
//! verdict that the VM is well, or VM lost ─▶ forget: what waits is not done
//! ```

use std::collections::VecDeque;

use super::{Action, ActionsConfig};
use crate::judge::{Health, Verdict};

const HOUR_MS: u64 = 3_600_000;

/// What is to be done about a verdict.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Do these, in this order, and then say so with [`Guard::done`].
    pub act: Vec<Action>,
    /// These would be done, were it not a dry run.
    pub would: Vec<Action>,
    /// These are not done.
    pub held: Vec<HeldBack>,
    /// About this one.
    pub verdict: Verdict,
}

/// What a guard holds back, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBack {
    /// What is not done.
    pub action: Action,
    /// Why not, in words.
    pub why: String,
}

/// The guard of one VM.
#[derive(Debug)]
pub struct Guard {
    config: ActionsConfig,
    /// When the VM was stopped or moved, in milliseconds since 1970.
    intrusions: VecDeque<u64>,
    busy: bool,
    waiting: Option<Waiting>,
}

/// What is done when a verdict has lasted long enough.
#[derive(Debug)]
struct Waiting {
    actions: Vec<Action>,
    verdict: Verdict,
    /// In milliseconds since 1970.
    due_ms: u64,
}

impl Guard {
    /// One that has done nothing yet.
    #[must_use]
    pub fn new(config: ActionsConfig) -> Self {
        Self {
            config,
            intrusions: VecDeque::new(),
            busy: false,
            waiting: None,
        }
    }

    /// What to do at once about a new verdict at `now_ms`, in milliseconds since 1970. What would wait for an earlier verdict to last is forgotten.
    /// None: there is nothing to do about such a one.
    pub fn ask(&mut self, verdict: Verdict, now_ms: u64) -> Option<Decision> {
        self.waiting = None;
        let mut wanted = match verdict.health {
            Health::Faulty => self.config.faulty.clone(),
            Health::Strange => self.config.strange.clone(),
            Health::Healthy | Health::Unknown => return None,
        };
        let patience = self.config.patience.0;
        if patience > 0
            && let Some(first) = wanted.iter().position(Action::is_intrusive)
        {
            self.waiting = Some(Waiting {
                actions: wanted.split_off(first),
                verdict: verdict.clone(),
                due_ms: now_ms.saturating_add(patience),
            });
        }
        Some(self.decide(&wanted, verdict, now_ms))
    }

    /// The verdict of the last [`Guard::ask`] still stands at `now_ms`: what to do now that it has lasted. Nothing before that, and while something
    /// is being done.
    pub fn go_on(&mut self, now_ms: u64) -> Option<Decision> {
        if self.busy {
            return None;
        }
        let Waiting {
            actions, verdict, ..
        } = self.waiting.take_if(|waiting| waiting.due_ms <= now_ms)?;
        Some(self.decide(&actions, verdict, now_ms))
    }

    /// The VM is not watched any more: no verdict of it stands.
    pub fn forget(&mut self) {
        self.waiting = None;
    }

    fn decide(&mut self, wanted: &[Action], verdict: Verdict, now_ms: u64) -> Decision {
        self.intrusions
            .retain(|at| now_ms.saturating_sub(*at) < HOUR_MS);
        let mut intrusions = self.intrusions.len();
        let resting = self
            .intrusions
            .back()
            .is_some_and(|at| now_ms.saturating_sub(*at) < self.config.rest.0);
        let (mut go, mut held) = (Vec::new(), Vec::new());
        for action in wanted {
            let why = if self.busy && *action != Action::Notify {
                Some("something is being done about this VM".to_owned())
            } else if needs_sound(action) && verdict.sound_until_ms.is_none() {
                Some("the VM was never seen healthy: there is nothing to go back to".to_owned())
            } else if !action.is_intrusive() {
                None
            } else if resting {
                Some("the VM was stopped or moved a moment ago, and has to come to rest".to_owned())
            } else if intrusions >= usize::try_from(self.config.most_per_hour).unwrap_or(usize::MAX)
            {
                Some(format!(
                    "the VM was stopped or moved {intrusions} times in the last hour, which is as often as it may be"
                ))
            } else if go.iter().any(Action::is_intrusive) {
                Some("the VM is stopped or moved once for one verdict".to_owned())
            } else {
                intrusions += 1;
                None
            };
            match why {
                None => go.push(action.clone()),
                Some(why) => held.push(HeldBack {
                    action: action.clone(),
                    why,
                }),
            }
        }
        let (act, would) = if self.config.dry_run {
            go.into_iter().partition(|action| *action == Action::Notify)
        } else {
            (go, Vec::new())
        };
        if act.iter().any(Action::is_intrusive) {
            self.intrusions.push_back(now_ms);
        }
        self.busy |= act.iter().any(|action| *action != Action::Notify);
        Decision {
            act,
            would,
            held,
            verdict,
        }
    }

    /// What was to be done is done, or has failed: at `now_ms`.
    pub fn done(&mut self, now_ms: u64) {
        self.busy = false;
        // The rest begins when it has ended.
        if let Some(last) = self.intrusions.back_mut()
            && now_ms.saturating_sub(*last) < HOUR_MS
        {
            *last = now_ms.max(*last);
        }
    }
}

fn needs_sound(action: &Action) -> bool {
    matches!(action, Action::PinHealthy | Action::Rewind { .. })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use nbd_server::group::history::TimeSpan;

    use super::*;

    fn verdict(health: Health) -> Verdict {
        Verdict {
            health,
            at_ms: 0,
            score: 0.9,
            confidence: 1.0,
            kind: None,
            reasons: Vec::new(),
            sound_until_ms: Some(1000),
        }
    }

    fn guard(faulty: &[Action]) -> Guard {
        Guard::new(ActionsConfig {
            faulty: faulty.to_vec(),
            patience: TimeSpan(0),
            rest: TimeSpan(60_000),
            ..ActionsConfig::default()
        })
    }

    fn rewind() -> Action {
        Action::Rewind {
            with_memory: true,
            then: Vec::new(),
        }
    }

    #[test]
    fn by_default_a_verdict_is_only_said() {
        let mut guard = Guard::new(ActionsConfig::default());
        let decision = guard.ask(verdict(Health::Faulty), 0).unwrap();
        assert_eq!(decision.act, [Action::Notify]);
        assert!(decision.held.is_empty());
        assert_eq!(guard.ask(verdict(Health::Healthy), 1), None);
    }

    #[test]
    fn never_two_at_once() {
        let all = [Action::PinHealthy, rewind()];
        let mut guard = guard(&all);
        assert_eq!(guard.ask(verdict(Health::Faulty), 0).unwrap().act, all);
        let decision = guard.ask(verdict(Health::Faulty), 30).unwrap();
        assert!(decision.act.is_empty());
        assert_eq!(decision.held.len(), 2);
        guard.done(40);
        // It rests, but what does not touch the VM is done.
        let decision = guard.ask(verdict(Health::Faulty), 50).unwrap();
        assert_eq!(decision.act, [Action::PinHealthy]);
        assert_eq!(decision.held.len(), 1);
    }

    #[test]
    fn so_often_in_an_hour_and_no_more() {
        let mut guard = guard(&[Action::Restart]);
        let mut done = 0;
        for minute in 0..180_u64 {
            let now = minute * 60_000;
            if guard.ask(verdict(Health::Faulty), now).unwrap().act == [Action::Restart] {
                done += 1;
                guard.done(now);
            }
        }
        assert_eq!(done, 6, "two in each of three hours");
    }

    #[test]
    fn one_verdict_stops_a_vm_once() {
        let mut guard = guard(&[rewind(), Action::SwitchOver]);
        let decision = guard.ask(verdict(Health::Faulty), 0).unwrap();
        assert_eq!(decision.act, [rewind()]);
        assert_eq!(decision.held.len(), 1);
    }

    #[test]
    fn nothing_to_go_back_to() {
        let mut guard = guard(&[Action::PinHealthy, rewind(), Action::Notify]);
        let unsound = Verdict {
            sound_until_ms: None,
            ..verdict(Health::Faulty)
        };
        let decision = guard.ask(unsound, 0).unwrap();
        assert_eq!(decision.act, [Action::Notify]);
        assert_eq!(decision.held.len(), 2);
    }

    #[test]
    fn a_dry_run_only_says() {
        let mut guard = Guard::new(ActionsConfig {
            faulty: vec![Action::Notify, rewind()],
            patience: TimeSpan(0),
            dry_run: true,
            ..ActionsConfig::default()
        });
        for now in [0, 1] {
            let decision = guard.ask(verdict(Health::Faulty), now).unwrap();
            assert_eq!(decision.act, [Action::Notify]);
            assert_eq!(decision.would, [rewind()]);
        }
    }

    #[test]
    fn a_vm_is_touched_when_its_verdict_has_lasted() {
        let mut guard = Guard::new(ActionsConfig {
            faulty: vec![Action::PinHealthy, rewind(), Action::Notify],
            patience: TimeSpan(15_000),
            ..ActionsConfig::default()
        });
        let ill = verdict(Health::Faulty);
        assert_eq!(guard.ask(ill.clone(), 0).unwrap().act, [Action::PinHealthy]);
        // The pin is still being made.
        assert_eq!(guard.go_on(16_000), None);
        guard.done(16_500);
        let decision = guard.go_on(17_000).unwrap();
        assert_eq!(decision.verdict, ill);
        assert_eq!(decision.act, [rewind(), Action::Notify]);
        guard.done(18_000);
        assert_eq!(guard.go_on(60_000), None);
    }

    #[test]
    fn a_vm_that_gets_well_by_itself_is_not_touched() {
        let mut guard = Guard::new(ActionsConfig {
            faulty: vec![rewind()],
            patience: TimeSpan(15_000),
            ..ActionsConfig::default()
        });
        for lost in [false, true] {
            assert!(
                guard
                    .ask(verdict(Health::Faulty), 0)
                    .unwrap()
                    .act
                    .is_empty()
            );
            if lost {
                guard.forget();
            } else {
                guard.ask(verdict(Health::Healthy), 10_000);
            }
            assert_eq!(guard.go_on(20_000), None);
        }
        // The time begins anew with each verdict.
        guard.ask(verdict(Health::Faulty), 21_000);
        assert_eq!(guard.go_on(35_000), None);
        assert_eq!(guard.go_on(36_000).unwrap().act, [rewind()]);
    }
}
