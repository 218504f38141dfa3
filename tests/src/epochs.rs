//! A source as the gateway sees it: owns a group, seals its epochs and commits them. It has no VM.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::control;
use crate::random::Random;

/// Who acknowledges checkpoints, as far as the gateway knows.
const STANDBY: &str = "standby:1";

/// Goes on.
const RUN: u8 = 0;
/// Commits what is sealed, then ends.
const DRAIN: u8 = 1;
/// The gateway is about to be killed: ends when it does not answer.
const ABANDON: u8 = 2;

/// The owner of group `g`.
#[derive(Debug)]
pub struct Epochs {
    source: Source,
    owner: String,
    state: Arc<AtomicU8>,
    committed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone)]
struct Source {
    control: PathBuf,
    generation: u64,
}

impl Source {
    fn post(&self, what: &str, body: &Value) -> io::Result<u64> {
        let path = format!("/v1/groups/g/{what}");
        let (status, answer) = control::try_post(&self.control, &path, body)?;
        assert_eq!(status, 200, "{what}: {answer}");
        Ok(answer["epoch"].as_u64().expect("an epoch"))
    }

    fn seal(&self) -> io::Result<u64> {
        self.post("seal", &json!({ "generation": self.generation }))
    }

    fn commit(&self, epoch: u64) -> io::Result<u64> {
        let body = json!({ "generation": self.generation, "epoch": epoch, "standby": STANDBY });
        self.post("commit", &body)
    }
}

impl Epochs {
    /// Takes the group.
    pub(crate) fn attach(control: PathBuf, owner: &str) -> Self {
        let (status, answer) =
            control::post(&control, "/v1/groups/g/attach", &json!({ "owner": owner }));
        assert_eq!(status, 200, "{answer}");
        Self {
            source: Source {
                control,
                generation: answer["generation"].as_u64().expect("a generation"),
            },
            owner: owner.to_owned(),
            state: Arc::default(),
            committed: Arc::default(),
            thread: None,
        }
    }

    /// Seals and commits from now on, in a thread.
    pub(crate) fn run(&mut self) {
        let (source, state, committed) = (
            self.source.clone(),
            Arc::clone(&self.state),
            Arc::clone(&self.committed),
        );
        self.thread = Some(std::thread::spawn(move || {
            if let Err(error) = pace(&source, &state, &committed) {
                assert_eq!(state.load(Ordering::Acquire), ABANDON, "{error}");
            }
        }));
    }

    /// Its id.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The newest epoch that the thread knows to be committed.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Seals; returns the epoch. Panics when the gateway does not.
    #[track_caller]
    pub fn seal(&self) -> u64 {
        self.source.seal().expect("the gateway seals")
    }

    /// Commits.
    ///
    /// # Errors
    /// When the gateway is gone; it may have committed all the same.
    pub fn commit(&self, epoch: u64) -> io::Result<u64> {
        self.source.commit(epoch)
    }

    /// The gateway is about to be killed.
    pub(crate) fn expect_the_worst(&self) {
        self.state.store(ABANDON, Ordering::Release);
    }

    /// Commits what is held and gives the group up.
    pub(crate) fn detach(mut self) {
        self.end();
        let body = json!({ "generation": self.source.generation });
        self.source
            .post("detach", &body)
            .expect("the gateway answers");
    }

    fn end(&mut self) {
        // Unless the end is another one already.
        let _ = self
            .state
            .compare_exchange(RUN, DRAIN, Ordering::AcqRel, Ordering::Acquire);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the thread that seals and commits has failed"
            );
        }
    }
}

impl Drop for Epochs {
    fn drop(&mut self) {
        self.end();
    }
}

/// Seals at random times and commits in order, up to three epochs behind.
fn pace(source: &Source, state: &AtomicU8, committed: &AtomicU64) -> io::Result<()> {
    let mut random = Random::from_seed(source.generation);
    let mut sealed = Vec::new();
    loop {
        let ending = state.load(Ordering::Acquire) == DRAIN;
        if !ending {
            sealed.push(source.seal()?);
        }
        let behind = if ending { 0 } else { random.within(0..4) };
        while sealed.len() as u64 > behind {
            let epoch = sealed.remove(0);
            source.commit(epoch)?;
            committed.store(epoch, Ordering::Release);
        }
        if ending {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(random.within(0..10)));
    }
}
