//! What is left of a run that is cold: the bytes of the file, its names, and those of the objects.
//!
//! ```text
//!   0         4096     8192
//!   ┌─────────┬─────────┬───────┬─────────┬───────┬─────────┐
//!   │ header  │ objects │ steps │ entries │ index │ trailer │     all but `objects` as they are in the run
//!   └─────────┴─────────┴───────┴─────────┴───────┴─────────┘
//! ```

use std::io::IoSlice;

use xxhash_rust::xxh3::Xxh3;

use super::super::HistoryError;
use super::super::format::{PAGE, PAGE_LEN, RunHeader, open_page, put_numbers, sealed_page};
use super::super::roll::salt;
use super::super::run::{ClosedRun, RunFile, failed};
use crate::disk::{LogDir, LogFile};
use crate::format::{LogId, Take};

const MAGIC: [u8; 8] = *b"EGH1CLD\0";
/// Header and `objects`.
const HEAD: u64 = 2 * PAGE;
/// More objects no run becomes: each of them may be asked for.
const MOST_PARTS: u64 = 1 << 16;
/// Copied at once, in bytes.
const COPY: usize = 1 << 20;

/// What a stub is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Its objects are being put; the run is still there.
    Begun,
    /// It stands for its run.
    Whole,
    /// Nobody needs it; its objects are being removed.
    Gone,
}

impl State {
    const ALL: [Self; 3] = [Self::Begun, Self::Whole, Self::Gone];

    fn suffix(self) -> &'static str {
        match self {
            Self::Begun => ".cold.new",
            Self::Whole => ".cold",
            Self::Gone => ".gone",
        }
    }
}

/// Name of the stub of run `number`.
pub fn file_name(number: u64, state: State) -> String {
    format!("{number:016}{}", state.suffix())
}

/// Number of the run whose stub has this name, and what it is.
pub fn number_of(name: &str) -> Option<(u64, State)> {
    State::ALL.into_iter().find_map(|state| {
        let digits = name.strip_suffix(state.suffix())?;
        let number = (digits.len() == 16)
            .then(|| digits.parse().ok())
            .flatten()?;
        Some((number, state))
    })
}

/// The objects of a run, one behind another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objects {
    /// Number of the run.
    pub number: u64,
    /// Tells these objects from all others of the same run.
    pub token: u64,
    /// Length of the run, in bytes.
    pub len: u64,
    /// Length of each object but the last, in bytes.
    pub part_len: u64,
    /// Where the tables begin in the run: from there on the stub has what the run has.
    pub tail: u64,
    /// Checksum of all bytes of the run, for those who read all of it.
    pub sum: u64,
}

impl Objects {
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(PAGE_LEN);
        let Self {
            number,
            token,
            len,
            part_len,
            tail,
            sum,
        } = *self;
        put_numbers(&mut body, &[number, token, len, part_len, tail, sum]);
        sealed_page(MAGIC, &body)
    }

    fn decode(page: &[u8]) -> Option<Self> {
        let mut from = Take(open_page(MAGIC, page)?);
        let objects = Self {
            number: from.u64()?,
            token: from.u64()?,
            len: from.u64()?,
            part_len: from.u64()?,
            tail: from.u64()?,
            sum: from.u64()?,
        };
        let sane = objects.part_len > 0 && (PAGE..objects.len).contains(&objects.tail);
        (sane && objects.parts() <= MOST_PARTS).then_some(objects)
    }

    /// How many there are.
    pub fn parts(&self) -> u64 {
        self.len.div_ceil(self.part_len)
    }

    /// Length of object number `part`, in bytes.
    pub fn part_len(&self, part: u64) -> u64 {
        let begin = part.saturating_mul(self.part_len);
        self.len.saturating_sub(begin).min(self.part_len)
    }

    /// The object that has byte `offset` of the run, and where.
    pub fn part_at(&self, offset: u64) -> (u64, u64) {
        (offset / self.part_len, offset % self.part_len)
    }

    /// Name of object number `part`.
    pub fn name(&self, log_id: LogId, part: u64) -> String {
        let log = u128::from_be_bytes(log_id);
        format!(
            "{log:032x}/{:016}-{:016x}.{part:04}",
            self.number, self.token
        )
    }

    /// Names of the objects that have `len` bytes of the run from `offset` on.
    pub fn names(&self, log_id: LogId, offset: u64, len: u32) -> String {
        let last = offset.saturating_add(u64::from(len).saturating_sub(1));
        let parts = self.part_at(offset).0..=self.part_at(last).0;
        let names: Vec<String> = parts.map(|part| self.name(log_id, part)).collect();
        names.join(" and ")
    }
}

/// A stub, open.
#[derive(Debug)]
pub struct Stub {
    /// The file.
    pub file: LogFile,
    /// Header of its run.
    pub header: RunHeader,
    /// Where the rest is.
    pub objects: Objects,
}

impl Stub {
    /// Opens the stub of run `number`. None: it is not whole at its beginning.
    pub fn open(dir: &LogDir, number: u64, state: State) -> Result<Option<Self>, HistoryError> {
        let name = file_name(number, state);
        let fail = |source| failed("open", dir.path().join(&name), source);
        let file = dir.open_file_read_only(&name).map_err(fail)?;
        let mut head = vec![0; 2 * PAGE_LEN];
        let got = file.read_at(&mut head, 0).map_err(fail)?;
        let (header, objects) = head
            .get(..got)
            .unwrap_or_default()
            .split_at_checked(PAGE_LEN)
            .unwrap_or_default();
        let found = RunHeader::decode(header).zip(Objects::decode(objects));
        Ok(found
            .filter(|(_, objects)| objects.number == number)
            .map(|(header, objects)| Self {
                file,
                header,
                objects,
            }))
    }

    /// Writes the stub of a run that is on disk, before anything of it is put as objects of `object_bytes` each. Durable on return, with its name.
    pub fn begin(
        dir: &LogDir,
        run: &ClosedRun,
        log_id: LogId,
        object_bytes: u64,
    ) -> Result<Self, HistoryError> {
        let number = run.file.number;
        let header = run.header(log_id);
        let name = file_name(number, State::Begun);
        let (sum, tail) = (sum_of(&run.file, run.bytes)?, run.tables_begin());
        let objects = Objects {
            number,
            token: salt(dir),
            len: run.bytes,
            part_len: object_bytes.max(1),
            tail,
            sum,
        };
        let fail = |source| failed("write", dir.path().join(&name), source);
        let file = dir.create_file(&name).map_err(fail)?;
        let mut buffer = vec![0; COPY];
        let mut at = tail;
        while at < run.bytes {
            let len = usize::try_from(run.bytes - at).unwrap_or(COPY).min(COPY);
            let part = buffer.get_mut(..len).unwrap_or_default();
            run.file.fill_whole(part, at)?;
            let place = at - tail + HEAD;
            file.write_at(&mut [IoSlice::new(part)], place)
                .map_err(fail)?;
            at += len as u64;
        }
        // The head vouches for what follows it.
        file.sync().map_err(fail)?;
        let head = [header.encode(), objects.encode()].concat();
        file.write_at(&mut [IoSlice::new(&head)], 0).map_err(fail)?;
        file.sync().map_err(fail)?;
        // Before the store has anything, there is a name for it that outlives us.
        dir.sync().map_err(fail)?;
        Ok(Self {
            file,
            header,
            objects,
        })
    }

    /// A process that was killed may have left it in the page cache: it was read, so it must last.
    pub fn make_durable(&self, dir: &LogDir) -> Result<(), HistoryError> {
        let synced = self.file.sync().and_then(|()| dir.sync());
        synced.map_err(|source| failed("sync", dir.path().join(self.file.name()), source))
    }

    /// Gives it another name, durably.
    pub fn becomes(&mut self, dir: &LogDir, state: State) -> Result<(), HistoryError> {
        let name = file_name(self.objects.number, state);
        let named = dir.rename(&mut self.file, &name).and_then(|()| dir.sync());
        named.map_err(|source| failed("name", dir.path().join(name), source))
    }
}

/// Byte `offset` of a run, which is not before the tables, in its stub.
pub fn place(objects: &Objects, offset: u64) -> u64 {
    offset.saturating_sub(objects.tail).saturating_add(HEAD)
}

/// Length of the stub, in bytes.
pub fn len(objects: &Objects) -> u64 {
    place(objects, objects.len)
}

/// What a stub has that only names its objects, in bytes.
pub const NAMES_ONLY: u64 = HEAD;

fn sum_of(file: &RunFile, len: u64) -> Result<u64, HistoryError> {
    let mut sum = Xxh3::new();
    let mut buffer = vec![0; COPY];
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at).unwrap_or(COPY).min(COPY);
        let part = buffer.get_mut(..part).unwrap_or_default();
        file.fill_whole(part, at)?;
        sum.update(part);
        at += part.len() as u64;
    }
    Ok(sum.digest())
}
