//! An export outside of groups over its life: one raw image, whoever is attached to it, and how they are sent away. It knows
//! neither names of other exports nor configuration files.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::attachments::{Attachments, Ticket};
use crate::export::{BlockExtent, Cutter, Export, ExportInfo, HeldExtent, IoError};
use crate::metrics::Meter;
use crate::raw_export::RawExport;

/// A raw image that is served under one name. Its image stays locked until the last attachment has ended.
#[derive(Debug)]
pub struct Served {
    raw: RawExport,
    meter: Arc<Meter>,
    clients: Arc<Attachments>,
}

impl Served {
    /// Serves `raw`, to nobody yet.
    pub fn new(raw: RawExport) -> Arc<Self> {
        Arc::new(Self {
            raw,
            meter: Arc::default(),
            clients: Arc::default(),
        })
    }

    /// The image.
    pub fn raw(&self) -> &RawExport {
        &self.raw
    }

    /// What its connections have done.
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Connections that are attached now.
    pub fn connections(&self) -> usize {
        self.clients.count()
    }

    /// Attaches one connection, until what is returned is dropped.
    pub fn attach(self: &Arc<Self>, cutter: Cutter) -> Attached {
        Attached {
            served: Arc::clone(self),
            _ticket: self.clients.enter(cutter),
        }
    }

    /// Sends all clients away: see `Attachments::send_away`.
    pub fn send_away(&self, grace: Duration) -> bool {
        self.clients.send_away(grace)
    }
}

/// One connection to a [`Served`] export.
#[derive(Debug)]
pub struct Attached {
    served: Arc<Served>,
    /// Dropped last: whoever waits for it finds the image free.
    _ticket: Ticket,
}

impl Export for Attached {
    fn info(&self) -> ExportInfo {
        self.served.raw.info()
    }

    fn meter(&self) -> Option<Arc<Meter>> {
        Some(Arc::clone(&self.served.meter))
    }

    fn try_read(&self, offset: u64, buf: &mut [u8]) -> Result<bool, IoError> {
        self.served.raw.try_read(offset, buf)
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), IoError> {
        self.served.raw.read(offset, buf)
    }

    fn cached_in(&self, offset: u64, len: u64) -> Option<&File> {
        self.served.raw.cached_in(offset, len)
    }

    fn try_write(&self, offset: u64, data: &[u8], fua: bool) -> Result<bool, IoError> {
        self.served.raw.try_write(offset, data, fua)
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoError> {
        self.served.raw.write(offset, data, fua)
    }

    fn flush(&self) -> Result<(), IoError> {
        self.served.raw.flush()
    }

    fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.served.raw.trim(offset, len, fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        may_trim: bool,
        fast: bool,
        fua: bool,
    ) -> Result<(), IoError> {
        self.served
            .raw
            .write_zeroes(offset, len, may_trim, fast, fua)
    }

    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<BlockExtent>, IoError> {
        self.served.raw.block_status(offset, len, max_extents)
    }

    fn held_status(
        &self,
        offset: u64,
        len: u64,
        max_extents: usize,
    ) -> Result<Vec<HeldExtent>, IoError> {
        self.served.raw.held_status(offset, len, max_extents)
    }

    fn cache(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.served.raw.cache(offset, len)
    }

    fn resize(&self, new_size: u64) -> Result<(), IoError> {
        self.served.raw.resize(new_size)
    }
}
