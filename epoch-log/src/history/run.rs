//! Files of a history: reading what was saved, verified each time, also where the payload lies elsewhere. Knows the bytes of a run and nothing
//! of what they are for.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::HistoryError;
use super::cold::{self, Cold, Objects, Stub};
use super::format::{
    Boundary, Entry, Fixed, PAGE_LEN, Piece, RunHeader, Step, Table, Trailer, decode_page,
    payload_sum, per_page,
};
use crate::disk::{LogDir, LogFile};
use crate::format::LogId;

const SUFFIX: &str = ".run";

/// Name of the file of run `number`.
pub fn file_name(number: u64) -> String {
    format!("{number:016}{SUFFIX}")
}

/// Number of the run in a file of that name.
pub fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 16).then(|| digits.parse().ok()).flatten()
}

/// Where the payload of a run is that is cold.
#[derive(Debug)]
pub struct Away {
    /// The objects.
    pub objects: Objects,
    /// The way to them.
    pub cold: Arc<Cold>,
}

/// The open file of a run.
#[derive(Debug)]
pub struct RunFile {
    /// The file; of a cold run its stub.
    pub file: LogFile,
    /// Its place, for messages.
    pub path: PathBuf,
    /// Number of the run.
    pub number: u64,
    /// Seed of its checksums.
    pub salt: u64,
    /// The run is cold.
    pub away: Option<Away>,
}

impl RunFile {
    /// The run that a stub in `dir` stands for.
    pub fn cold(dir: &LogDir, stub: Stub, cold: &Arc<Cold>) -> Self {
        let Stub {
            file,
            header,
            objects,
        } = stub;
        Self {
            path: dir.path().join(file.name()),
            file,
            number: objects.number,
            salt: header.salt,
            away: Some(Away {
                objects,
                cold: Arc::clone(cold),
            }),
        }
    }

    /// Opens run `number` of `dir`, and reads how it begins. None: it has no whole header.
    pub fn open(
        dir: &LogDir,
        number: u64,
        writable: bool,
    ) -> Result<Option<(Self, RunHeader)>, HistoryError> {
        let name = file_name(number);
        let path = dir.path().join(&name);
        let opened = if writable {
            dir.open_file(&name)
        } else {
            dir.open_file_read_only(&name)
        };
        let file = opened.map_err(|source| failed("open", path.clone(), source))?;
        let mut page = vec![0; PAGE_LEN];
        let got = file
            .read_at(&mut page, 0)
            .map_err(|source| failed("read", path.clone(), source))?;
        let header = page.get(..got).and_then(RunHeader::decode);
        Ok(header.map(|header| {
            let salt = header.salt;
            let file = Self {
                file,
                path,
                number,
                salt,
                away: None,
            };
            (file, header)
        }))
    }

    /// Length of the run in bytes.
    pub fn len(&self) -> Result<u64, HistoryError> {
        if let Some(away) = &self.away {
            return Ok(away.objects.len);
        }
        self.local_len()
    }

    /// Length of the file here, in bytes.
    fn local_len(&self) -> Result<u64, HistoryError> {
        let len = self.file.len();
        len.map_err(|e| failed("measure", self.path.clone(), e))
    }

    /// Fills `buffer`; false if the file ends before.
    pub fn fill(&self, buffer: &mut [u8], offset: u64) -> Result<bool, HistoryError> {
        let offset = match &self.away {
            Some(away) if offset < away.objects.tail => {
                away.cold.read(&away.objects, offset, buffer)?;
                return Ok(true);
            }
            Some(away) => cold::place(&away.objects, offset),
            None => offset,
        };
        let got = self
            .file
            .read_at(buffer, offset)
            .map_err(|e| failed("read", self.path.clone(), e))?;
        Ok(got == buffer.len())
    }

    /// The same where the file must not end.
    pub fn fill_whole(&self, buffer: &mut [u8], offset: u64) -> Result<(), HistoryError> {
        if self.fill(buffer, offset)? {
            return Ok(());
        }
        Err(self.damaged(offset, "it is cut off"))
    }

    /// Fills `buffer` with what `entry` holds from byte `start` of the disk on.
    ///
    /// The payload is read and verified whole: `scratch` is for that.
    pub fn read_entry(
        &self,
        entry: &Entry,
        start: u64,
        buffer: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<(), HistoryError> {
        if entry.is_zero() {
            buffer.fill(0);
            return Ok(());
        }
        self.payload(entry, scratch)?;
        let part = start
            .checked_sub(entry.start)
            .and_then(|from| scratch.get(usize::try_from(from).ok()?..))
            .and_then(|rest| rest.get(..buffer.len()));
        let part = part.ok_or_else(|| self.damaged(entry.place, "an entry for another range"))?;
        buffer.copy_from_slice(part);
        Ok(())
    }

    /// The whole payload of an entry with data.
    pub fn payload(&self, entry: &Entry, payload: &mut Vec<u8>) -> Result<(), HistoryError> {
        payload.resize(entry.len as usize, 0);
        if self.fill(payload, entry.place)? && payload_sum(payload, self.salt) == entry.sum {
            return Ok(());
        }
        if let Some(away) = &self.away {
            // It may have been damaged on its way, and would stay so.
            let Away { objects, cold } = away;
            cold.forget(objects, entry.place, u64::from(entry.len));
            cold.read(objects, entry.place, payload)?;
            if payload_sum(payload, self.salt) == entry.sum {
                return Ok(());
            }
            cold.forget(objects, entry.place, u64::from(entry.len));
            return Err(HistoryError::Damaged {
                file: objects.names(cold.log_id(), entry.place, entry.len).into(),
                offset: objects.part_at(entry.place).1,
                what: "what is in cold storage does not match its checksum",
            });
        }
        Err(self.damaged(entry.place, "saved data does not match its checksum"))
    }

    pub fn damaged(&self, offset: u64, what: &'static str) -> HistoryError {
        HistoryError::Damaged {
            file: self.path.clone(),
            offset,
            what,
        }
    }
}

/// An error of the system.
pub fn failed(action: &'static str, path: PathBuf, source: io::Error) -> HistoryError {
    HistoryError::Io {
        action,
        path,
        source,
    }
}

/// A run that is closed: nothing in it changes any more.
#[derive(Debug)]
pub struct ClosedRun {
    /// Its file.
    pub file: Arc<RunFile>,
    /// Where it begins.
    pub from: Boundary,
    /// How thin it is.
    pub tier: u32,
    /// Length of the run, in bytes.
    pub bytes: u64,
    trailer: Trailer,
}

impl ClosedRun {
    /// The run in `file`, if it is closed.
    pub fn of(file: &Arc<RunFile>, header: &RunHeader) -> Result<Option<Self>, HistoryError> {
        let bytes = file.len()?;
        let page = PAGE_LEN as u64;
        let Some(at) = bytes
            .checked_sub(page)
            .filter(|at| *at >= page && at % page == 0)
        else {
            return Ok(None);
        };
        let mut last = vec![0; PAGE_LEN];
        let whole = file.fill(&mut last, at)?;
        let fits = |trailer: &Trailer| {
            fits::<Step>(trailer.steps, at)
                && fits::<Entry>(trailer.entries, at)
                && fits::<Piece>(trailer.index, at)
        };
        let trailer = Trailer::decode(&last, file.salt).filter(|trailer| whole && fits(trailer));
        let run = trailer.map(|trailer| Self {
            file: Arc::clone(file),
            from: header.from,
            tier: header.tier,
            bytes,
            trailer,
        });
        // A stub says itself how long its run is: only what is here is taken for its tables.
        Ok(match &file.away {
            Some(away) if away.objects.tail > run.as_ref().map_or(0, Self::tables_begin) => None,
            Some(away) if cold::len(&away.objects) > file.local_len()? => None,
            _ => run,
        })
    }

    /// What its file takes here, in bytes.
    pub fn local_bytes(&self) -> u64 {
        match &self.file.away {
            Some(away) => cold::len(&away.objects),
            None => self.bytes,
        }
    }

    /// What it takes in the cold store, in bytes.
    pub fn cold_bytes(&self) -> u64 {
        if self.is_cold() { self.bytes } else { 0 }
    }

    /// Its payload is in the cold store.
    pub fn is_cold(&self) -> bool {
        self.file.away.is_some()
    }

    /// What it begins with.
    pub fn header(&self, log_id: LogId) -> RunHeader {
        RunHeader {
            log_id,
            salt: self.file.salt,
            tier: self.tier,
            from: self.from,
        }
    }

    /// Where its tables begin: no payload lies behind.
    pub fn tables_begin(&self) -> u64 {
        let Trailer {
            steps,
            entries,
            index,
            ..
        } = self.trailer;
        steps.offset.min(entries.offset).min(index.offset)
    }

    /// Where it ends.
    pub fn to(&self) -> Boundary {
        self.trailer.to
    }

    /// How many steps it has.
    pub fn steps_count(&self) -> u64 {
        self.trailer.steps.count
    }

    /// How many entries it has.
    pub fn entries_count(&self) -> u64 {
        self.trailer.entries.count
    }

    /// Its steps, in order.
    pub fn steps(&self) -> Result<Vec<Step>, HistoryError> {
        self.records(self.trailer.steps, 0, self.trailer.steps.count)
    }

    /// Its entries from number `from` on, as many as there are before `to`.
    pub fn entries(&self, from: u64, to: u64) -> Result<Vec<Entry>, HistoryError> {
        self.records(self.trailer.entries, from, to)
    }

    /// Reads the whole index, for its checksums.
    pub fn check_index(&self) -> Result<(), HistoryError> {
        self.records::<Piece>(self.trailer.index, 0, self.trailer.index.count)
            .map(drop)
    }

    /// One entry.
    pub fn entry(&self, number: u32) -> Result<Entry, HistoryError> {
        let number = u64::from(number);
        let found = self.entries(number, number + 1)?;
        let missing = || {
            self.file
                .damaged(self.trailer.entries.offset, "an entry is missing")
        };
        found.first().copied().ok_or_else(missing)
    }

    /// The entry that speaks for a piece, which may be cut. Tables that do not fit each other are damage: a piece says nothing beyond its entry.
    pub fn entry_of(&self, piece: &Piece) -> Result<Entry, HistoryError> {
        let entry = self.entry(piece.entry)?;
        let end = piece.start + u64::from(piece.len);
        let fits = entry.disk == piece.disk && entry.start <= piece.start && end <= entry.end();
        fits.then_some(entry).ok_or_else(|| {
            self.file.damaged(
                self.trailer.index.offset,
                "a piece of another range than its entry",
            )
        })
    }

    /// What the range held when the run began, as far as the run changed it: in order, each piece cut to the range.
    pub fn find(&self, disk: u16, start: u64, end: u64) -> Result<Vec<Piece>, HistoryError> {
        let index = self.trailer.index;
        let each = per_page::<Piece>();
        let page_at = |page: u64| self.records::<Piece>(index, page * each, (page + 1) * each);
        let begins_before = |piece: &Piece| (piece.disk, piece.start) <= (disk, start);
        // The last page that begins at or before the range; the first one if none does.
        let (mut low, mut high) = (0, index.count.div_ceil(each));
        let mut cached: Option<(u64, Vec<Piece>)> = None;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let page = page_at(middle)?;
            if page.first().is_some_and(begins_before) {
                low = middle;
                cached = Some((middle, page));
            } else {
                high = middle;
            }
        }
        let mut found = Vec::new();
        for number in low..index.count.div_ceil(each) {
            let page = match cached.take() {
                Some((at, page)) if at == number => page,
                _ => page_at(number)?,
            };
            for piece in page {
                if (piece.disk, piece.start) >= (disk, end) {
                    return Ok(found);
                }
                let (from, to) = (
                    piece.start.max(start),
                    (piece.start + u64::from(piece.len)).min(end),
                );
                if piece.disk == disk && from < to {
                    found.push(Piece {
                        start: from,
                        len: u32::try_from(to - from).unwrap_or(u32::MAX),
                        ..piece
                    });
                }
            }
        }
        Ok(found)
    }

    /// Records `from..to` of a table, as far as it goes.
    fn records<T: Fixed>(&self, table: Table, from: u64, to: u64) -> Result<Vec<T>, HistoryError> {
        let each = per_page::<T>();
        let to = to.min(table.count);
        if from >= to {
            return Ok(Vec::new());
        }
        let page_len = PAGE_LEN as u64;
        let (first, last) = (from / each, to.div_ceil(each));
        let begin = table.offset + first * page_len;
        // Whoever asks for all of a table asks for no more than fits into memory: a closed run is bounded.
        let mut bytes = vec![0; usize::try_from((last - first) * page_len).unwrap_or(0)];
        if !self.file.fill(&mut bytes, begin)? {
            return Err(self.file.damaged(begin, "a table is cut off"));
        }
        let mut records = Vec::new();
        for (page, number) in bytes.chunks(PAGE_LEN).zip(first..last) {
            let offset = table.offset + number * page_len;
            let count = (table.count - number * each).min(each);
            let decoded = decode_page(
                page,
                usize::try_from(count).unwrap_or(0),
                self.file.salt,
                offset,
            );
            records.extend(decoded.ok_or_else(|| {
                self.file
                    .damaged(offset, "a page of a table does not match its checksum")
            })?);
        }
        let skip = usize::try_from(from - first * each).unwrap_or(0);
        let take = usize::try_from(to - from).unwrap_or(0);
        Ok(records.into_iter().skip(skip).take(take).collect())
    }
}

/// Whether a table ends before byte `end` of its file.
fn fits<T: Fixed>(table: Table, end: u64) -> bool {
    let pages = table.count.div_ceil(per_page::<T>());
    let bytes = pages.checked_mul(PAGE_LEN as u64);
    bytes
        .and_then(|bytes| table.offset.checked_add(bytes))
        .is_some_and(|to| to <= end)
}
