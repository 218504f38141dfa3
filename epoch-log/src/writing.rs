//! How the log writes: a full disk takes back what was begun, any other error poisons; state records; cutting and freeing.
//! Decides nothing about who may write or what is committed (`log.rs`).

use std::io::{self, IoSlice};

use crate::{
    Epoch, EpochLog, LogError, LogState,
    append::Packed,
    disk::means_full,
    format::{
        Chain, DataFields, Position, STATE_RECORD_BYTES, StateKind, StateRecord, encode_data,
        encode_state,
    },
    recovery::RecordPlace,
};

impl EpochLog {
    /// Poisons the log if something failed.
    pub(crate) fn checked<T>(
        &mut self,
        action: &'static str,
        result: io::Result<T>,
    ) -> Result<T, LogError> {
        result.map_err(|source| {
            self.poisoned = true;
            LogError::io(action, self.dir(), source)
        })
    }

    /// Tries something that writes. On a full disk everything it has written is taken back; any other error poisons the log.
    pub(crate) fn attempt<T>(
        &mut self,
        action: &'static str,
        write: impl Fn(&mut Self) -> io::Result<T>,
    ) -> Result<T, LogError> {
        let start = self.segments.end();
        match write(self) {
            Err(source) if means_full(&source) => {
                let cut = self.segments.cut(start);
                self.checked("take back a write from", cut)?;
                // Space for what must be written now is worth more than a fast start of later segments.
                let given = self.segments.give_back_spares();
                if self.checked("remove spare segments of", given)? {
                    return self.attempt(action, write);
                }
                Err(LogError::Full {
                    dir: self.dir().to_owned(),
                    source,
                })
            }
            other => self.checked(action, other),
        }
    }

    pub(crate) fn write_data(
        &mut self,
        epoch: Epoch,
        records: &[Packed<'_>],
    ) -> io::Result<Vec<(RecordPlace, u64)>> {
        records
            .iter()
            .map(|record| self.write_record(epoch, record))
            .collect()
    }

    fn write_record(
        &mut self,
        epoch: Epoch,
        record: &Packed<'_>,
    ) -> io::Result<(RecordPlace, u64)> {
        self.segments
            .make_room(record.total_len(), self.sequence, &self.state)?;
        let key = self.segments.current().key;
        let at = self.segments.end();
        let fields = DataFields {
            generation: self.state.generation,
            epoch,
            sequence: self.sequence,
            payload_len: record.payload_len,
            payload_sum: record.payload_sum(key.salt),
        };
        let (header, header_sum) = encode_data(&key, at.offset, &fields, &record.entries);
        self.segments
            .write(record.slices(&header), record.total_len())?;
        let header_len = header.len() as u64;
        Ok((
            RecordPlace {
                at,
                header_len,
                payload_len: record.payload_len,
            },
            header_sum,
        ))
    }

    /// Writes a state record, makes it durable, and takes over the state. All records but commits may use the reserve: they are
    /// what frees space or fences an owner.
    pub(crate) fn record(
        &mut self,
        kind: StateKind,
        state: LogState,
        chain: Chain,
        reason: &str,
    ) -> Result<Position, LogError> {
        let sequence = self.sequence + 1;
        let record = StateRecord {
            kind,
            sequence,
            state,
            chain,
            reason: reason.to_owned(),
        };
        let write = |log: &mut Self| log.write_state(&record);
        let at = match self.attempt("write to", write) {
            Err(LogError::Full { .. }) if kind != StateKind::Commit && self.reserve.spend() => {
                self.attempt("write to", write)?
            }
            other => other?,
        };
        let synced = self.segments.sync_current();
        self.checked("sync", synced)?;
        self.state = record.state;
        self.sequence = sequence;
        self.state_end = self.segments.end();
        Ok(at)
    }

    fn write_state(&mut self, record: &StateRecord) -> io::Result<Position> {
        self.segments
            .make_room(STATE_RECORD_BYTES, self.sequence, &self.state)?;
        let at = self.segments.end();
        let bytes = encode_state(&self.segments.current().key, at.offset, record);
        self.segments
            .write(vec![IoSlice::new(&bytes)], STATE_RECORD_BYTES)?;
        Ok(at)
    }

    /// Drops all uncommitted data: by cutting it off, or, where state records already follow it, by a record that voids it.
    pub(crate) fn drop_uncommitted(&mut self) -> Result<(), LogError> {
        let before = |place: &RecordPlace| place.at < self.state_end;
        if self
            .index
            .pending
            .values()
            .flat_map(|data| &data.records)
            .any(before)
        {
            let state = self.state.clone();
            self.record(StateKind::Void, state, Chain::default(), "")?;
        } else {
            self.cut_tail()?;
        }
        self.index.pending.clear();
        Ok(())
    }

    /// Cuts what follows the last state record when the log is opened, and voids uncommitted data before it. Returns how many
    /// bytes were cut.
    pub(crate) fn recover_tail(&mut self) -> Result<u64, LogError> {
        let cut = self.cut_tail()?;
        let kept = self.state_end;
        self.index
            .pending
            .retain(|_, data| data.records.iter().any(|place| place.at < kept));
        self.drop_uncommitted()?;
        Ok(cut)
    }

    fn cut_tail(&mut self) -> Result<u64, LogError> {
        let cut = self.segments.cut(self.state_end);
        self.checked("cut uncommitted data from", cut)
    }

    /// Frees the segments that hold nothing that still counts. Returns how many.
    pub(crate) fn free_dead(&mut self) -> Result<usize, LogError> {
        let needed = self
            .index
            .first_segment()
            .unwrap_or(u64::MAX)
            .min(self.state_end.segment);
        let freed = self.segments.free_before(needed);
        freed.map_err(|source| LogError::io("free segments of", self.dir(), source))
    }

    /// Frees also the current segment, if nothing in it counts any more, by beginning the next one. True if anything was freed.
    pub(crate) fn free_all_dead(&mut self) -> Result<bool, LogError> {
        let mut freed = self.free_dead()?;
        let used = self.segments.end().offset > self.segments.current().records_start;
        if used && self.index.first_segment().is_none() {
            let _had_some = self.reserve.spend();
            self.begin_segment()?;
            freed += self.free_dead()?;
            self.restore_reserve()?;
        }
        Ok(freed > 0)
    }

    /// Takes the reserve again if it was spent, before anything else gets the space: spare segments go for it.
    pub(crate) fn restore_reserve(&mut self) -> Result<(), LogError> {
        if !self.reserve.is_whole() {
            let given = self.segments.give_back_spares();
            self.checked("remove spare segments of", given)?;
            self.reserve.restore();
        }
        Ok(())
    }

    /// Begins a segment; from then on its header holds the state.
    pub(crate) fn begin_segment(&mut self) -> Result<(), LogError> {
        self.attempt("begin a segment of", |log| {
            log.segments.begin_next(log.sequence, &log.state)
        })?;
        self.state_end = self.segments.end();
        Ok(())
    }
}
