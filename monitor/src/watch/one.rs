//! The watch of one VM: looks for it, follows it, loses it, finds it again.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::{Event, Now, Options, Orders, Outcome, Tell, Told};
use crate::actions::Action;
use crate::actions::carry_out::Hands;
use crate::actions::guard::{Decision, Guard};
use crate::features::{Extractor, WINDOW_MS};
use crate::judge::{Health, Judge, Opinion, Verdict};
use crate::model::{Judgement, Model};
use crate::sample::{Sampler, Watched};

/// After a VM that is not there so long is waited before it is looked for again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a VM is not followed any longer.
enum Left {
    /// It can't be reached any more.
    Lost(String),
    /// This is to be done to it.
    ToAct(Box<Act>),
}

/// Something that is done about a verdict.
struct Act {
    actions: Vec<Action>,
    verdict: Verdict,
    hands: Hands,
}

impl Act {
    /// Does one after the other. One that touches the VM and fails is the last: what comes after it counts on it.
    async fn carry_out(&self, teller: &Teller) {
        for action in &self.actions {
            match self.hands.carry_out(action, &self.verdict).await {
                Ok(()) => teller.action(action, Outcome::Done, None),
                Err(error) => {
                    teller.action(action, Outcome::Failed, Some(error.to_string()));
                    if action.is_intrusive() {
                        return;
                    }
                }
            }
        }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.actions.iter().map(Action::name).collect();
        names.join(", ")
    }
}

pub(super) struct One {
    judge: Judge,
    guard: Guard,
    model: Arc<Model>,
    options: Options,
    teller: Teller,
    orders: Orders,
    /// What is done beside the watching: the guard lets no second thing begin.
    beside: Option<JoinHandle<()>>,
}

/// Tells events, and counts them.
#[derive(Clone)]
struct Teller {
    vm: String,
    tell: Tell,
}

impl Teller {
    fn tell(&self, event: Event) {
        self.tell.now.send_modify(|now| now.figures.count(&event));
        let told = Told {
            t_ms: since_1970(),
            vm: self.vm.clone(),
            event,
        };
        // Whether anybody listens is not the watch's business.
        let _unheard = self.tell.events.send(told);
    }

    fn action(&self, action: &Action, outcome: Outcome, reason: Option<String>) {
        self.tell(Event::Action {
            action: action.name(),
            outcome,
            reason,
        });
    }

    fn now(&self, change: impl FnOnce(&mut Now)) {
        self.tell.now.send_modify(change);
    }
}

impl One {
    pub(super) fn new(model: Arc<Model>, options: Options, tell: Tell, orders: Orders) -> Self {
        Self {
            judge: Judge::new(options.rule),
            guard: Guard::new(options.actions.clone()),
            model,
            teller: Teller {
                vm: options.hands.reach.vm.clone(),
                tell,
            },
            options,
            orders,
            beside: None,
        }
    }

    /// Until it is told to stop; what is being done then is finished, unless it is told so twice.
    pub(super) async fn run(mut self, watched: impl Fn() -> Watched) {
        let mut stop = self.orders.stop.clone();
        self.watch(watched).await;
        if let Some(beside) = self.beside.take() {
            tokio::select! {
                biased;
                _ = stop.wait_for(|count| *count > 1) => {}
                // A panic of it has been reported by itself.
                _ = beside => {}
            }
        }
    }

    async fn watch(&mut self, watched: impl Fn() -> Watched) {
        let mut stop = self.orders.stop.clone();
        loop {
            let followed = async {
                match Sampler::start(watched()).await {
                    Ok(sampler) => self.follow(sampler).await,
                    Err(error) => Left::Lost(error.to_string()),
                }
            };
            let left = tokio::select! {
                biased;
                _ = stop.wait_for(|count| *count > 0) => return,
                left = followed => left,
            };
            match left {
                Left::Lost(reason) => self.lose(reason),
                Left::ToAct(act) => {
                    tokio::select! {
                        biased;
                        _ = stop.wait_for(|count| *count > 1) => return,
                        () = act.carry_out(&self.teller) => self.guard.done(since_1970()),
                    }
                    self.lose(format!("{} was done to it", act.names()));
                }
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|count| *count > 0) => return,
                () = tokio::time::sleep(PATIENCE) => {}
            }
        }
    }

    /// Until the VM can't be reached any more, or something is to be done to it.
    async fn follow(&mut self, mut sampler: Sampler) -> Left {
        let pid = sampler.sampled_pid();
        self.teller.tell(Event::Watching { pid });
        self.teller.now(|now| now.lost = None);
        let mut extractor = Extractor::default();
        let mut ticks = tokio::time::interval(self.options.interval);
        // A sample that took too long is not made up for.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.orders.anew.mark_unchanged();
        loop {
            ticks.tick().await;
            if self.orders.anew.has_changed().unwrap_or(false) {
                self.orders.anew.mark_unchanged();
                extractor = Extractor::default();
                self.judge.forget();
                self.guard.forget();
                self.change(Health::Unknown, since_1970());
            }
            let sample = sampler.sample().await;
            if sampler.sampled_pid() != pid {
                return Left::Lost(match sampler.sampled_pid() {
                    None => "its QEMU has ended".to_owned(),
                    Some(_) => "it has another QEMU now".to_owned(),
                });
            }
            let Some(window) = extractor.push(&sample) else {
                continue;
            };
            let judgement = self.model.judge(&window);
            let missing = judgement.missing.iter();
            let missing: Vec<String> = missing.map(|source| source.name().to_owned()).collect();
            let opinion = self.opinion(judgement, sample.wall_ms);
            let verdict = self.judge.hear(opinion.clone());
            let sound_until_ms = self.judge.sound_until_ms();
            extractor.hold(self.judge.health() == Health::Faulty);
            self.teller.now(|now| {
                now.opinion = Some(opinion);
                now.missing = missing;
                now.sound_until_ms = sound_until_ms;
                now.figures.windows += 1;
            });
            if let Some(verdict) = &verdict {
                self.change(verdict.health, verdict.at_ms);
                self.teller.tell(Event::Verdict(verdict.clone()));
            }
            if let Some(act) = self.weigh(verdict, sampler.socket()) {
                return Left::ToAct(Box::new(act));
            }
        }
    }

    /// What may be done about a new verdict, or about one that has lasted, is begun, beside the watching; or returned, if it needs the VM, whose
    /// QMP socket may be `socket`.
    fn weigh(&mut self, new: Option<Verdict>, socket: Option<&Path>) -> Option<Act> {
        if self.beside.take_if(|act| act.is_finished()).is_some() {
            self.guard.done(since_1970());
        }
        let Decision {
            act: go,
            would,
            held,
            verdict,
        } = match new {
            Some(verdict) => self.guard.ask(verdict, since_1970()),
            None => self.guard.go_on(since_1970()),
        }?;
        for action in would {
            self.teller.action(&action, Outcome::Would, None);
        }
        for held in held {
            let why = Some(held.why);
            self.teller.action(&held.action, Outcome::HeldBack, why);
        }
        // The verdict itself was told already.
        let actions: Vec<Action> = go.into_iter().filter(|a| *a != Action::Notify).collect();
        if actions.is_empty() {
            return None;
        }
        let mut hands = self.options.hands.clone();
        if let Some(socket) = socket {
            hands.reach.qmp = Some(socket.to_owned());
        }
        let act = Act {
            actions,
            verdict,
            hands,
        };
        if act.actions.iter().any(Action::is_intrusive) {
            return Some(act);
        }
        let teller = self.teller.clone();
        self.beside = Some(tokio::spawn(async move { act.carry_out(&teller).await }));
        None
    }

    /// What the judge hears of a judgement.
    fn opinion(&self, judgement: Judgement, to_ms: u64) -> Opinion {
        let thresholds = self.model.header().verdict;
        let alarm = f64::from(thresholds.alarm);
        let alarm = self.options.rule.alarm.unwrap_or(alarm);
        let score = f64::from(judgement.score);
        let kind = judgement.kinds.into_iter().map(|(kind, _)| kind).next();
        let reasons = judgement.reasons.into_iter();
        Opinion {
            from_ms: to_ms.saturating_sub(WINDOW_MS),
            to_ms,
            score,
            threshold: alarm,
            still_faulty: f64::from(thresholds.threshold),
            strange: judgement.novelty >= 1.0,
            confidence: f64::from(judgement.confidence),
            kind: kind.filter(|_| score >= alarm),
            reasons: reasons.map(|reason| reason.words).collect(),
        }
    }

    fn lose(&mut self, reason: String) {
        self.judge.forget();
        self.guard.forget();
        self.change(Health::Unknown, since_1970());
        let is_known = self.teller.tell.now.borrow().lost.as_ref() == Some(&reason);
        if is_known {
            return;
        }
        self.teller.now(|now| {
            now.lost = Some(reason.clone());
            now.opinion = None;
        });
        self.teller.tell(Event::Lost { reason });
    }

    fn change(&self, health: Health, at_ms: u64) {
        self.teller.now(|now| {
            if now.health != health {
                (now.health, now.since_ms) = (health, at_ms);
            }
        });
    }
}

fn since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
