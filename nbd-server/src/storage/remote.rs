//! One object of bytes on a server below, a file or an export, as the rest sees it; and how an operation on it comes to its end although the
//! server restarts, is busy, or has forgotten the object. Knows no protocol.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::link::{Answer, Link, Message, Ticket};

/// First and longest pause before something that the server refused is tried again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// What is refused for less than this is no news: a server that starts is busy for a moment.
const PATIENT: Duration = Duration::from_secs(1);

/// What can be asked.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Read { offset: u64, len: usize },
    Write { offset: u64, data: Bytes },
    Zero { offset: u64, len: u64 },
    Trim { offset: u64, len: u64 },
    Flush,
}

/// A life of a server, as far as it can be told: what the server has in memory, it has no longer in another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    /// Number of the connection: no server restarts without its end.
    pub connection: u64,
    /// What the server itself says of its lives, if it does. Of some servers two that begin in the same second are alike.
    pub verifier: u64,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// In which life of the server. None: in more than one.
    pub life: Option<Life>,
    /// What was written is on the disk already.
    pub durable: bool,
    /// How many bytes were written; a server may take less than it was given.
    pub count: usize,
    /// What was read; less than asked for ends where the object does.
    pub data: Vec<u8>,
}

/// How an operation ended.
#[derive(Debug)]
pub(super) enum End {
    Done(Outcome),
    /// The server can't do it now. It is asked again, after [`Remote::renew`].
    Again(io::Error),
    Failed(io::Error),
}

/// What the server can take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most bytes of one read.
    pub read: usize,
    /// Most bytes of one write.
    pub write: usize,
    /// It can write zeros by itself.
    pub zero: bool,
    /// It can give space back.
    pub trim: bool,
}

/// An object on a server.
pub(super) trait Remote: fmt::Debug + Send + Sync + 'static {
    /// The way to the server.
    fn link(&self) -> &Link;

    /// The request with the number `id`.
    fn message(&self, id: u64, op: &Op) -> Message;

    /// Makes sense of an answer.
    fn end(&self, op: &Op, answer: &mut Answer) -> End;

    /// Finds the object again on a server that does not know it any more.
    fn renew(&self) -> io::Result<()> {
        Ok(())
    }

    /// What the server can take.
    fn limits(&self) -> Limits;
}

/// Takes an operation down. It still has to be sent.
pub(super) fn begin<R: Remote>(remote: &R, op: &Op) -> Ticket {
    remote.link().register(|id| remote.message(id, op))
}

/// Waits for what was begun, and does what it takes to bring it to an end.
///
/// # Errors
/// What the server said, or that it had nothing to say for too long.
pub(super) fn finish<R: Remote>(remote: &R, op: &Op, ticket: &Ticket) -> io::Result<Outcome> {
    let mut outcome = settle(remote, op, ticket)?;
    // The rest of what was taken or given in part.
    while let Some(rest) = rest_of(op, &outcome) {
        let ticket = begin(remote, &rest);
        remote.link().send(&ticket);
        let next = settle(remote, &rest, &ticket)?;
        if next.count == 0 && next.data.is_empty() {
            break;
        }
        outcome.life = outcome.life.filter(|life| next.life == Some(*life));
        outcome.durable &= next.durable;
        outcome.count += next.count;
        outcome.data.extend_from_slice(&next.data);
    }
    match op {
        Op::Write { data, .. } if outcome.count < data.len() => {
            Err(io::ErrorKind::WriteZero.into())
        }
        _ => Ok(outcome),
    }
}

/// Does an operation from its beginning to its end.
///
/// # Errors
/// As [`finish`].
pub(super) fn run<R: Remote>(remote: &R, op: &Op) -> io::Result<Outcome> {
    let ticket = begin(remote, op);
    remote.link().send(&ticket);
    finish(remote, op, &ticket)
}

fn rest_of(op: &Op, outcome: &Outcome) -> Option<Op> {
    match op {
        Op::Write { offset, data } if (1..data.len()).contains(&outcome.count) => Some(Op::Write {
            offset: offset + outcome.count as u64,
            data: data.slice(outcome.count..),
        }),
        Op::Read { offset, len } if (1..*len).contains(&outcome.data.len()) => Some(Op::Read {
            offset: offset + outcome.data.len() as u64,
            len: len - outcome.data.len(),
        }),
        _ => None,
    }
}

fn settle<R: Remote>(remote: &R, op: &Op, ticket: &Ticket) -> io::Result<Outcome> {
    let mut patience = Patience::new(remote.link());
    let mut answer = ticket.wait()?;
    loop {
        match remote.end(op, &mut answer) {
            End::Done(outcome) => {
                patience.over();
                return Ok(outcome);
            }
            End::Failed(error) => {
                patience.over();
                return Err(error);
            }
            End::Again(error) => patience.wait(error)?,
        }
        if let Err(error) = remote.renew() {
            patience.wait(error)?;
            continue;
        }
        answer = remote.link().call(|id| remote.message(id, op))?;
    }
}

/// Waits between attempts, as long as the link is given.
pub(super) struct Patience<'a> {
    link: &'a Link,
    since: Instant,
    pause: Duration,
    noted: bool,
}

impl<'a> Patience<'a> {
    /// From now on.
    pub fn new(link: &'a Link) -> Self {
        Self {
            link,
            since: Instant::now(),
            pause: BACK_OFF.0,
            noted: false,
        }
    }

    /// Waits before the next attempt, because of `error`; it is the answer when there is no more patience.
    pub fn wait(&mut self, error: io::Error) -> io::Result<()> {
        let waited = self.since.elapsed();
        let over = self
            .link
            .patience()
            .is_some_and(|patience| waited >= patience);
        if over {
            return Err(error);
        }
        if waited >= PATIENT {
            let refusal = format!("the server refuses: {error}; requests wait, trying again");
            self.link.note_refusal(Some(&refusal));
            self.noted = true;
        }
        std::thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(BACK_OFF.1);
        Ok(())
    }

    /// It has worked, or has come to an end.
    pub fn over(&self) {
        if self.noted {
            self.link.note_refusal(None);
        }
    }
}
