//! How a link fares, and what is said of it: once when trouble begins, once when it is over. Decides when a silent server is asked on another
//! connection, and when a connection is given up. Pure but for the messages.

use std::io;
use std::time::{Duration, Instant};

/// A request that waits so long is worth a word.
const REPORT: Duration = Duration::from_secs(3);
/// After so much silence the server is asked on another connection, and again after as long.
const PROBE: Duration = Duration::from_secs(10);
/// It answers there: so long it has to say something here.
const GRACE: Duration = Duration::from_secs(5);

/// What is to be done with a silent connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Ask on another connection.
    pub probe: bool,
    /// End it.
    pub give_up: bool,
}

/// How a link fares.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// What is wrong with the connection, and since when.
    trouble: Option<(String, Instant)>,
    /// What the server refuses, and since when.
    refusal: Option<(String, Instant)>,
    /// When the server said something last.
    heard: Option<Instant>,
    probing: bool,
    probed_at: Option<Instant>,
    /// When it answered on another connection.
    alive_at: Option<Instant>,
}

impl Health {
    /// What is wrong now, for people.
    pub fn said(&self, name: &str) -> Option<String> {
        let troubles = [&self.trouble, &self.refusal];
        let said: Vec<String> = troubles
            .into_iter()
            .flatten()
            .map(|(what, since)| format!("{name}: {what} (since {} s)", since.elapsed().as_secs()))
            .collect();
        (!said.is_empty()).then(|| said.join("; "))
    }

    /// There is a connection.
    pub fn connected(&mut self, name: &str) {
        self.heard = Some(Instant::now());
        (self.alive_at, self.probed_at) = (None, None);
        self.over(name);
    }

    /// The server said something.
    pub fn answered(&mut self, name: &str) {
        self.heard = Some(Instant::now());
        (self.alive_at, self.probed_at) = (None, None);
        self.over(name);
    }

    fn over(&mut self, name: &str) {
        if let Some((what, since)) = self.trouble.take() {
            let seconds = since.elapsed().as_secs_f32();
            tracing::info!(
                storage = name,
                seconds,
                "the storage answers again after: {what}"
            );
        }
    }

    /// The connection is lost, or there is none.
    pub fn lost(&mut self, name: &str, error: &io::Error) {
        let what = format!("no connection: {error}; requests wait, trying again");
        self.begin(name, what);
    }

    /// Notes what the server refuses though it should not; none: it works.
    pub fn note_refusal(&mut self, name: &str, refusal: Option<&str>) {
        match (refusal, self.refusal.take()) {
            (None, None) => {}
            (None, Some((what, since))) => {
                let seconds = since.elapsed().as_secs_f32();
                tracing::info!(
                    storage = name,
                    seconds,
                    "the storage works again after: {what}"
                );
            }
            (Some(now), Some((what, since))) if what == now => self.refusal = Some((what, since)),
            (Some(now), before) => {
                tracing::warn!(storage = name, "{now}");
                let since = before.map_or_else(Instant::now, |(_, since)| since);
                self.refusal = Some((now.to_owned(), since));
            }
        }
    }

    fn begin(&mut self, name: &str, what: String) {
        match &mut self.trouble {
            Some((before, _)) if *before == what => {}
            Some((before, _)) => {
                tracing::warn!(storage = name, "{what}");
                *before = what;
            }
            None => {
                tracing::warn!(storage = name, "{what}");
                self.trouble = Some((what, Instant::now()));
            }
        }
    }

    /// The server was asked on another connection.
    pub fn probed(&mut self, answers: bool) {
        self.probing = false;
        self.alive_at = answers.then(Instant::now);
    }

    /// Nothing came for a while; the oldest request waits since `oldest`.
    pub fn look(&mut self, name: &str, now: Instant, oldest: Option<Instant>) -> Verdict {
        let Some(oldest) = oldest else {
            return Verdict::default();
        };
        let since = self.heard.map_or(oldest, |heard| heard.max(oldest));
        let silence = now.saturating_duration_since(since);
        if silence >= REPORT && self.trouble.is_none() {
            self.begin(name, "it does not answer; requests wait".to_owned());
        }
        let last = self.probed_at.map_or(since, |at| at.max(since));
        let probe = !self.probing && now.saturating_duration_since(last) >= PROBE;
        if probe {
            self.probing = true;
            self.probed_at = Some(now);
        }
        let give_up = self
            .alive_at
            .is_some_and(|alive| now.saturating_duration_since(alive) >= GRACE);
        Verdict { probe, give_up }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_silent_connection_is_kept_until_the_server_answers_elsewhere() {
        let start = Instant::now();
        let mut health = Health::default();
        assert_eq!(
            health.look("nas", after(start, 900), None),
            Verdict::default()
        );
        let quiet = health.look("nas", after(start, 9), Some(start));
        assert_eq!(
            (quiet, health.said("nas").is_some()),
            (Verdict::default(), true)
        );
        assert!(health.look("nas", after(start, 10), Some(start)).probe);
        // One at a time, however long it takes.
        let waiting = health.look("nas", after(start, 90), Some(start));
        assert_eq!(waiting, Verdict::default());
        health.probed(false);
        assert!(!health.look("nas", after(start, 91), Some(start)).give_up);
        health.probed(true);
        assert!(health.look("nas", after(start, 999), Some(start)).give_up);
        health.answered("nas");
        assert_eq!(health.said("nas"), None);
        assert!(
            !health
                .look("nas", after(start, 999), Some(after(start, 999)))
                .give_up
        );
    }
}
