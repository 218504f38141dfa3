//! Counting where requests are answered: [`Tally`] for those that a connection's own thread answers, batch by batch, and
//! [`Started`] for one that a worker does. What a client has an answer for is counted already.

use std::sync::Arc;
use std::time::Instant;

use super::meter::{ERRORS, KINDS, Kind, Meter, error_index};
use crate::export::IoError;

/// The counts of one connection since its last answers were sent.
#[derive(Debug)]
pub(crate) struct Tally {
    meter: Arc<Meter>,
    /// When the present batch was received.
    received: Instant,
    answered: bool,
    counts: [u64; KINDS],
    bytes: [u64; KINDS],
    errors: [u64; ERRORS],
}

impl Tally {
    /// A connection begins; it ends when this is dropped.
    pub fn new(meter: Arc<Meter>) -> Self {
        meter.enter();
        Self {
            meter,
            received: Instant::now(),
            answered: false,
            counts: [0; KINDS],
            bytes: [0; KINDS],
            errors: [0; ERRORS],
        }
    }

    /// A batch of requests has come.
    pub fn received(&mut self) {
        self.received = Instant::now();
    }

    /// A request of the batch has its answer: `error` or success with `len` bytes.
    pub fn answered(&mut self, kind: Kind, len: u64, error: Option<IoError>) {
        self.answered = true;
        let place = kind as usize;
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        match error {
            Some(error) => {
                if let Some(errors) = self.errors.get_mut(error_index(error)) {
                    *errors += 1;
                }
            }
            None if kind.has_range() => {
                if let Some(bytes) = self.bytes.get_mut(place) {
                    *bytes = bytes.saturating_add(len);
                }
            }
            None => {}
        }
    }

    /// The answers are about to be sent: everybody may know.
    pub fn settle(&mut self) {
        if !self.answered {
            return;
        }
        self.answered = false;
        let took = self.received.elapsed();
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            let (Some(count), Some(bytes)) =
                (self.counts.get_mut(place), self.bytes.get_mut(place))
            else {
                continue;
            };
            if *count > 0 {
                self.meter.add(kind, *count, *bytes, took);
                *count = 0;
                *bytes = 0;
            }
        }
        for (index, errors) in self.errors.iter_mut().enumerate() {
            if *errors > 0 {
                self.meter.add_errors(index, *errors);
                *errors = 0;
            }
        }
    }

    /// A request of the batch goes to a worker.
    pub fn start(&self, kind: Kind, len: u64) -> Started {
        self.meter.begin();
        Started {
            meter: Arc::clone(&self.meter),
            kind,
            len,
            received: self.received,
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.settle();
        self.meter.leave();
    }
}

/// A request that a worker has. Dropped without an answer it is no longer under way, and counted nowhere.
#[derive(Debug)]
pub(crate) struct Started {
    meter: Arc<Meter>,
    kind: Kind,
    len: u64,
    received: Instant,
}

impl Started {
    /// It has its answer.
    pub fn answered(self, error: Option<IoError>) {
        let bytes = match error {
            None if self.kind.has_range() => self.len,
            _ => 0,
        };
        self.meter.add(self.kind, 1, bytes, self.received.elapsed());
        if let Some(error) = error {
            self.meter.add_errors(error_index(error), 1);
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.meter.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_settled_is_counted_once() {
        let meter = Arc::new(Meter::default());
        let mut tally = Tally::new(Arc::clone(&meter));
        assert_eq!(meter.connections(), 1);
        tally.received();
        tally.answered(Kind::Read, 4096, None);
        tally.answered(Kind::Read, 512, None);
        tally.answered(Kind::Read, 512, Some(IoError::Io));
        tally.answered(Kind::Flush, 9, None);
        assert_eq!(meter.requests(Kind::Read), 0, "nothing is shared before");
        tally.settle();
        tally.settle();
        assert_eq!(
            (meter.requests(Kind::Read), meter.bytes(Kind::Read)),
            (3, 4608)
        );
        assert_eq!(
            (meter.requests(Kind::Flush), meter.bytes(Kind::Flush)),
            (1, 0)
        );
        tally.answered(Kind::Write, 7, None);
        drop(tally);
        assert_eq!((meter.requests(Kind::Write), meter.connections()), (1, 0));
        let errors: Vec<_> = meter.errors().filter(|(_, count)| *count > 0).collect();
        assert_eq!(errors, [("eio", 1)]);
    }

    #[test]
    fn a_request_is_in_flight_until_it_is_answered_or_forgotten() {
        let meter = Arc::new(Meter::default());
        let tally = Tally::new(Arc::clone(&meter));
        let (first, second) = (tally.start(Kind::Trim, 10), tally.start(Kind::Trim, 10));
        assert_eq!(meter.in_flight(), 2);
        first.answered(None);
        drop(second);
        assert_eq!(meter.in_flight(), 0);
        assert_eq!(
            (meter.requests(Kind::Trim), meter.bytes(Kind::Trim)),
            (1, 10)
        );
    }
}
