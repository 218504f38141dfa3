//! What happened, as lines that are hashed, counted and, if somebody looks, printed. Two runs of a seed have the same hash.

use std::collections::BTreeMap;
use std::fmt::Arguments;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::gateway::Micros;

/// The trace of one seed.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    print: bool,
    line: String,
    /// Lines so far.
    pub events: u64,
    /// How often which fault struck.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was reached how often.
    pub reached: BTreeMap<&'static str, u64>,
}

impl Trace {
    /// An empty trace.
    pub fn new(print: bool) -> Self {
        Self {
            hash: 0,
            print,
            line: String::new(),
            events: 0,
            faults: BTreeMap::new(),
            reached: BTreeMap::new(),
        }
    }

    /// Notes a line.
    pub fn note(&mut self, now: Micros, what: Arguments<'_>) {
        use std::fmt::Write;
        self.events += 1;
        self.line.clear();
        let _ = write!(self.line, "{now:>9} {what}");
        self.hash = xxh3_64_with_seed(self.line.as_bytes(), self.hash);
        if self.print {
            println!("{}", self.line);
        }
    }

    /// Notes a fault.
    pub fn fault(&mut self, now: Micros, kind: &'static str, more: Arguments<'_>) {
        *self.faults.entry(kind).or_default() += 1;
        self.note(now, format_args!("FAULT {kind} {more}"));
    }

    /// Counts something that shows that a run was worth it.
    pub fn reach(&mut self, what: &'static str) {
        self.reach_times(what, 1);
    }

    /// Counts so many of them.
    pub fn reach_times(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.reached.entry(what).or_default() += times;
        }
    }

    /// Tells two runs apart.
    pub fn digest(&self) -> u64 {
        self.hash
    }
}
