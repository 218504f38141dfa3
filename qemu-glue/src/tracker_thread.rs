//! A thread for the dirty-page tracker: scanning and copying keep a core busy for milliseconds and must not hold up
//! the device state and the seal, which run beside them on the async runtime. A scan that is known to be [quick](QUICK) is done
//! where it is asked for, without the way to the thread and back.
//!
//! What a scan found counts as clean in the kernel from then on, so it must not get lost if the checkpoint fails. It stays
//! *pending* here, and is part of every further copy, until the checkpoint was saved.

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::dirty_pages::{DirtyTracker, TrackerKind};
use crate::error::{Error, Result};
use crate::guest_ram::GuestRam;
use crate::page_set::{PAGE, PAGE_SIZE, PageRange, PageSet};

/// Guest memory, in bytes, up to which a cheap scan is quick: it takes less than a millisecond then.
const QUICK: u64 = 1 << 30;

/// How far a base copy is. Make a new one for each base copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseCursor {
    position: u64,
    chunk: u64,
}

impl BaseCursor {
    /// Starts at the beginning; each step looks at up to `chunk` bytes of memory (rounded to pages, at least one).
    pub fn new(chunk: u64) -> Self {
        BaseCursor {
            position: 0,
            chunk: chunk.next_multiple_of(PAGE_SIZE).max(PAGE_SIZE),
        }
    }

    /// Bytes of guest memory already looked at; the whole is [`GuestRam::len`].
    pub fn position(&self) -> u64 {
        self.position
    }
}

/// How long the parts of a [`TrackerThread::scan`] took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ScanTimes {
    pub(crate) scan: Duration,
    pub(crate) copy: Duration,
}

enum Request {
    Start(oneshot::Sender<Result<()>>),
    CopyBase(
        BaseCursor,
        PageSet,
        oneshot::Sender<(PageSet, Result<BaseCursor>)>,
    ),
    Scan(PageSet, oneshot::Sender<(PageSet, Result<ScanTimes>)>),
}

/// A scan that goes on by itself. If it is dropped, what was found is part of the next one.
#[derive(Debug)]
pub(crate) struct Scanning {
    answer: oneshot::Receiver<(PageSet, Result<ScanTimes>)>,
    kind: TrackerKind,
    /// As [`DirtyTracker::writes`], before it.
    writes: Option<u64>,
}

impl Scanning {
    /// Waits for its end. Returns what was written, with its content, and the count of writes from before the scan.
    pub(crate) async fn end(self) -> Result<(PageSet, ScanTimes, Option<u64>)> {
        let (pages, outcome) = self.answer.await.map_err(|_| gone(self.kind))?;
        Ok((pages, outcome?, self.writes))
    }
}

/// The thread's handle; the thread ends with it.
#[derive(Debug)]
pub(crate) struct TrackerThread {
    kind: TrackerKind,
    rescan_is_cheap: bool,
    /// Whether scans are done without the thread.
    quick: bool,
    worker: Arc<Mutex<Worker>>,
    /// None only while it is dropped.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl TrackerThread {
    pub(crate) fn new(tracker: Box<dyn DirtyTracker>, ram: Arc<GuestRam>) -> Self {
        let (requests, inbox) = mpsc::channel();
        let (kind, rescan_is_cheap) = (tracker.kind(), tracker.rescan_is_cheap());
        let quick = rescan_is_cheap && ram.len() <= QUICK;
        let worker = Arc::new(Mutex::new(Worker {
            tracker,
            ram,
            pending: Vec::new(),
        }));
        let served = Arc::clone(&worker);
        let thread = std::thread::spawn(move || serve(&served, &inbox));
        TrackerThread {
            kind,
            rescan_is_cheap,
            quick,
            worker,
            requests: Some(requests),
            thread: Some(thread),
        }
    }

    pub(crate) fn kind(&self) -> TrackerKind {
        self.kind
    }

    pub(crate) fn rescan_is_cheap(&self) -> bool {
        self.rescan_is_cheap
    }

    /// From now on everything counts as clean.
    pub(crate) async fn start(&self) -> Result<()> {
        let (answer, result) = oneshot::channel();
        self.ask(Request::Start(answer))?;
        result.await.map_err(|_| self.gone())?
    }

    /// Appends the next chunk's pages that are not zero; the cursor advances.
    pub(crate) async fn copy_base(
        &self,
        cursor: &mut BaseCursor,
        pages: &mut PageSet,
    ) -> Result<()> {
        let (answer, result) = oneshot::channel();
        self.ask(Request::CopyBase(*cursor, std::mem::take(pages), answer))?;
        let (filled, outcome) = result.await.map_err(|_| self.gone())?;
        *pages = filled;
        *cursor = outcome?;
        Ok(())
    }

    /// Scans and appends what was written, with its content, to `pages`.
    pub(crate) async fn scan(&self, pages: &mut PageSet) -> Result<ScanTimes> {
        if self.quick {
            return lock(&self.worker).scan(pages);
        }
        let (filled, times, _) = self.begin_scan(std::mem::take(pages))?.end().await?;
        *pages = filled;
        Ok(times)
    }

    /// Begins a scan that appends to `pages`.
    pub(crate) fn begin_scan(&self, pages: PageSet) -> Result<Scanning> {
        let writes = self.writes();
        let (sender, answer) = oneshot::channel();
        self.ask(Request::Scan(pages, sender))?;
        Ok(Scanning {
            answer,
            kind: self.kind,
            writes,
        })
    }

    /// As [`DirtyTracker::writes`]. Not to be asked while a scan is under way, which it would wait for.
    pub(crate) fn writes(&self) -> Option<u64> {
        lock(&self.worker).tracker.writes()
    }

    /// The caller holds all that was scanned so far.
    pub(crate) fn saved(&self) {
        lock(&self.worker).pending.clear();
    }

    fn ask(&self, request: Request) -> Result<()> {
        self.requests
            .as_ref()
            .and_then(|inbox| inbox.send(request).ok())
            .ok_or_else(|| self.gone())
    }

    fn gone(&self) -> Error {
        gone(self.kind)
    }
}

fn gone(kind: TrackerKind) -> Error {
    Error::Tracker {
        kind,
        problem: "its thread ended".into(),
        source: None,
    }
}

impl Drop for TrackerThread {
    fn drop(&mut self) {
        // The thread holds the guest's memory: whoever drops the VM may rely on that it is given back.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was already reported by `gone`.
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Worker {
    tracker: Box<dyn DirtyTracker>,
    ram: Arc<GuestRam>,
    /// Found by scans, in order, but not yet known to be saved.
    pending: Vec<PageRange>,
}

/// What a panic left behind is as good as what an error leaves: all that was found is pending.
fn lock(worker: &Mutex<Worker>) -> std::sync::MutexGuard<'_, Worker> {
    worker.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(worker: &Mutex<Worker>, inbox: &mpsc::Receiver<Request>) {
    // An answer that nobody waits for is fine: what it found stays pending.
    while let Ok(request) = inbox.recv() {
        let mut worker = lock(worker);
        match request {
            Request::Start(answer) => {
                worker.pending.clear();
                drop(answer.send(worker.tracker.start()));
            }
            Request::CopyBase(cursor, mut pages, answer) => {
                let outcome = worker.copy_base(cursor, &mut pages);
                drop(answer.send((pages, outcome)));
            }
            Request::Scan(mut pages, answer) => {
                let outcome = worker.scan(&mut pages);
                drop(answer.send((pages, outcome)));
            }
        }
    }
}

impl Worker {
    fn scan(&mut self, pages: &mut PageSet) -> Result<ScanTimes> {
        let begin = Instant::now();
        // The caller's set is empty at the first scan of a checkpoint: then what is pending must go along.
        let from = if pages.is_empty() {
            0
        } else {
            self.pending.len()
        };
        self.tracker.scan(&mut self.pending)?;
        let scanned = Instant::now();
        for range in self.pending.iter().skip(from) {
            pages.push_from(&self.ram, *range)?;
        }
        Ok(ScanTimes {
            scan: scanned - begin,
            copy: scanned.elapsed(),
        })
    }

    fn copy_base(&mut self, mut cursor: BaseCursor, pages: &mut PageSet) -> Result<BaseCursor> {
        let chunk_end = cursor
            .position
            .saturating_add(cursor.chunk)
            .min(self.ram.len());
        while cursor.position < chunk_end {
            let Some(allocated) = self.ram.next_allocated(cursor.position)? else {
                cursor.position = self.ram.len();
                return Ok(cursor);
            };
            // A hole costs nothing to skip, so the chunk counts from behind it.
            if allocated.offset >= chunk_end {
                cursor.position = allocated.offset;
                return Ok(cursor);
            }
            let end = allocated.end().min(chunk_end);
            self.copy_nonzero(
                PageRange {
                    offset: allocated.offset,
                    len: end - allocated.offset,
                },
                pages,
            )?;
            cursor.position = end;
        }
        Ok(cursor)
    }

    fn copy_nonzero(&mut self, range: PageRange, pages: &mut PageSet) -> Result<()> {
        let mut page = [0; PAGE];
        let mut open: Option<PageRange> = None;
        for offset in (range.offset..range.end()).step_by(PAGE) {
            self.ram.read(offset, &mut page)?;
            if page == [0; PAGE] {
                pages.ranges.extend(open.take());
                continue;
            }
            let found = PageRange {
                offset,
                len: PAGE_SIZE,
            };
            pages.data.extend_from_slice(&page);
            self.tracker.copied(found, &page);
            open.get_or_insert(PageRange { offset, len: 0 }).len += PAGE_SIZE;
        }
        pages.ranges.extend(open);
        Ok(())
    }
}
