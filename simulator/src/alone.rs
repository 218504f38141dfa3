//! A group without a source: plain clients write, flush and read while the gateway crashes, the power goes and the storage fails.
//!
//! In async mode the disks are at any time what the guest's writes up to some moment make of them, over all disks, and never
//! earlier than the last flush that was answered. In sync mode each sector is what its newest write made of it; a power loss
//! may take back what came after the last flush.

mod recovered;

use std::future::Future;
use std::pin::Pin;

use epoch_log::LogError;
use nbd_server::export::{Cutter, Export, IoError};
use nbd_server::group::{Clear, DiskExport, Flush, GroupMode, OpenError};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::blocks::{
    CLEARED, DISKS, PLACES, Stamp, UNIT, UNITS, fill, holds, position, shown, stamps,
};
use crate::gateway::{Gateway, Micros, StorageHost};
use crate::poll::{Answer, poll};
use crate::storage::Op;
use crate::trace::Trace;
use crate::{Options, Violation, violation};

/// One write of the guest.
#[derive(Debug, Clone)]
struct Write {
    place: usize,
    count: usize,
    stamp: Stamp,
}

type Waiting = Pin<Box<dyn Future<Output = Option<Result<(), IoError>>>>>;

struct Alone<'a> {
    random: StdRng,
    trace: &'a mut Trace,
    host: StorageHost,
    gateway: Option<Gateway>,
    exports: Vec<DiskExport>,
    mode: GroupMode,
    /// When an administrator changes the mode: a stream of its own, and none where the group keeps history.
    changes: Option<StdRng>,
    now: Micros,
    next_stamp: Stamp,
    /// Writes that are not known to be durable, in order.
    history: Vec<Write>,
    /// What is known to be durable.
    floor: Vec<Stamp>,
    /// What the newest write made of each place.
    newest: Vec<Stamp>,
    /// Flushes under way, with the length of the history that they cover.
    flushes: Vec<(u64, Waiting)>,
    /// Writes that were dropped from the front of the history so far.
    dropped: u64,
    /// A sync has failed: what the page cache holds may never reach the disk.
    sync_failed: bool,
    /// The last crash was one of the power.
    power_lost: bool,
    broken: bool,
    /// A bit of the log was flipped: it may be damaged, but only aloud.
    flipped: bool,
    /// Nothing can go on.
    over: bool,
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options, trace: &mut Trace) -> Result<(), Violation> {
    let mut random = StdRng::seed_from_u64(seed);
    let mode = if random.random_ratio(2, 3) {
        GroupMode::Async
    } else {
        GroupMode::Sync
    };
    let host = StorageHost::new(&mut random, seed, mode, options);
    // Without a source a group that keeps history is like one in async mode.
    let mode = if options.history {
        GroupMode::Async
    } else {
        mode
    };
    let mut alone = Alone {
        random,
        trace,
        host,
        gateway: None,
        exports: Vec::new(),
        mode,
        changes: (!options.history).then(|| StdRng::seed_from_u64(!seed)),
        now: 0,
        next_stamp: 1,
        history: Vec::new(),
        floor: vec![0; PLACES],
        newest: vec![0; PLACES],
        flushes: Vec::new(),
        dropped: 0,
        sync_failed: false,
        power_lost: true,
        broken: false,
        flipped: false,
        over: false,
    };
    alone
        .trace
        .note(0, format_args!("a group without a source, {mode:?}"));
    alone.start()?;
    let end = alone.random.random_range(100_000..600_000);
    let mut next_fault = alone.random.random_range(5_000..100_000);
    let mut next_op = 0;
    while alone.now < end && !alone.over {
        let due = alone.gateway.as_ref().and_then(Gateway::due);
        alone.now = next_op.min(next_fault).min(due.unwrap_or(u64::MAX));
        if due == Some(alone.now) {
            alone.turn()?;
        } else if alone.now == next_op {
            alone.operate()?;
            next_op = alone.now + alone.random.random_range(50..4_000);
        } else {
            alone.fault()?;
            next_fault = alone.now + alone.random.random_range(5_000..150_000);
        }
    }
    alone.finish()
}

impl Alone<'_> {
    fn start(&mut self) -> Result<(), Violation> {
        let mode = self.next_mode();
        self.host.set_mode(mode);
        for _ in 0..20 {
            match self.host.start(self.now) {
                Ok(gateway) => {
                    self.gateway = Some(gateway);
                    self.attach()?;
                    let disk = self.host.disk.clone();
                    disk.undisturbed(|| self.compare(mode))?;
                    self.mode = mode;
                    return Ok(());
                }
                Err(OpenError::Log {
                    source: LogError::Damaged(damage),
                    ..
                }) if self.flipped => {
                    self.trace
                        .note(self.now, format_args!("the damage is named: {damage}"));
                    self.trace.reach("damage named");
                    self.over = true;
                    return Ok(());
                }
                Err(error) if self.host.disk.figures().1 > 0 || self.host.disk.is_dead() => {
                    self.trace
                        .note(self.now, format_args!("the group does not open: {error:?}"));
                    self.host.disk.process_ends();
                    self.host.disk.heal();
                }
                Err(error) => return violation!("the group does not open: {error:?}"),
            }
        }
        violation!("the group never opens")
    }

    fn attach(&mut self) -> Result<(), Violation> {
        let Some(gateway) = &self.gateway else {
            return Ok(());
        };
        self.exports.clear();
        for disk in 0..DISKS {
            let group = gateway.stepped.group();
            match group.attach(&format!("disk{disk}"), None, Cutter::inert()) {
                Some(Ok(export)) => self.exports.push(export),
                other => return violation!("no attachment: {other:?}"),
            }
        }
        Ok(())
    }

    fn next_mode(&mut self) -> GroupMode {
        let changes = self.now > 0
            && self
                .changes
                .as_mut()
                .is_some_and(|random| random.random_ratio(1, 5));
        match self.mode {
            mode if !changes => mode,
            GroupMode::Sync => {
                self.trace.reach("sync to async mode");
                GroupMode::Async
            }
            GroupMode::Async => GroupMode::Sync,
        }
    }

    fn turn(&mut self) -> Result<(), Violation> {
        if let Some(gateway) = &mut self.gateway {
            let commits = gateway.turn(self.now, &mut self.random);
            self.trace.note(
                self.now,
                format_args!("turn {}", if commits { "commit" } else { "apply" }),
            );
        }
        if self.host.disk.is_dead() {
            let power = self.random.random_bool(0.5) && !self.sync_failed;
            return self.crash(power);
        }
        self.answer_flushes();
        Ok(())
    }

    fn answer_flushes(&mut self) {
        let mut answered = Vec::new();
        self.flushes
            .retain_mut(|(covers, waiting)| match poll(waiting) {
                Answer::Pending => true,
                Answer::Ready(outcome) => {
                    answered.push((*covers, outcome));
                    false
                }
            });
        for (covers, outcome) in answered {
            let good = matches!(outcome, Some(Ok(())));
            self.trace
                .note(self.now, format_args!("flush {covers}: {outcome:?}"));
            if good {
                self.flushed(covers);
            } else {
                self.broken = true;
            }
        }
    }

    /// All writes before `covers` are durable.
    fn flushed(&mut self, covers: u64) {
        let count = usize::try_from(covers.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        let count = count.min(self.history.len());
        for write in self.history.drain(..count) {
            self.floor[write.place..write.place + write.count].fill(write.stamp);
        }
        self.dropped += count as u64;
    }

    fn operate(&mut self) -> Result<(), Violation> {
        let Some(gateway) = &mut self.gateway else {
            return Ok(());
        };
        gateway.poke(self.now, &mut self.random);
        match self.random.random_range(0..20) {
            0 => self.flush(),
            1..6 => self.read(),
            kind => self.write(kind == 6),
        }
    }

    fn write(&mut self, clear: bool) -> Result<(), Violation> {
        let count = self.random.random_range(1..=6);
        let disk = self.random.random_range(0..DISKS);
        let unit = self.random.random_range(0..=UNITS - count);
        let place = disk * UNITS + unit;
        self.next_stamp += 1;
        let stamp = self.next_stamp | if clear { CLEARED } else { 0 };
        let (_, offset) = position(place);
        let len = count * UNIT;
        let outcome = if clear {
            let how = [Clear::Zero, Clear::Hole, Clear::Trim][self.random.random_range(0..3)];
            self.exports[disk].clear_now(offset, len as u64, how)
        } else {
            let mut data = vec![0; len];
            for (number, unit) in data.chunks_exact_mut(UNIT).enumerate() {
                fill(stamp, place + number, unit);
            }
            self.exports[disk].write_now(offset, &data)
        };
        self.trace.note(
            self.now,
            format_args!("write {stamp:x} at {place}+{count}: {outcome:?}"),
        );
        // One that failed may be there in part.
        let happened = outcome.unwrap_or(true);
        if happened {
            self.history.push(Write {
                place,
                count,
                stamp,
            });
            self.newest[place..place + count].fill(stamp);
        }
        if self.host.disk.is_dead() {
            let power = self.random.random_bool(0.5) && !self.sync_failed;
            return self.crash(power);
        }
        if outcome.is_err() {
            return self.storage_failed();
        }
        Ok(())
    }

    fn read(&mut self) -> Result<(), Violation> {
        let place = self.random.random_range(0..PLACES);
        let (disk, offset) = position(place);
        let mut unit = vec![0; UNIT];
        match self.exports[disk].read(offset, &mut unit) {
            Ok(()) if holds(self.newest[place], place, &unit) => Ok(()),
            Ok(()) => violation!(
                "unit {place} reads as {:?} and not as {:x}",
                stamps(place, &unit),
                self.newest[place]
            ),
            Err(IoError::Io) => Ok(()),
            Err(other) => violation!("unit {place} can't be read: {other}"),
        }
    }

    fn flush(&mut self) -> Result<(), Violation> {
        let covers = self.dropped + self.history.len() as u64;
        let mut through = true;
        for disk in 0..DISKS {
            match self.exports[disk].flush_now() {
                Ok(Flush::Done) => {}
                Ok(Flush::Commits(done)) => {
                    let done = async move { done.await.ok() };
                    self.flushes.push((covers, Box::pin(done)));
                    return Ok(());
                }
                Ok(Flush::Waits) => through = false,
                Err(_) if self.host.disk.is_dead() => {
                    let power = self.random.random_bool(0.5) && !self.sync_failed;
                    return self.crash(power);
                }
                Err(_) => return self.storage_failed(),
            }
        }
        if through {
            self.flushed(covers);
        }
        Ok(())
    }

    /// The guest sees an error: its administrator starts the gateway again.
    fn storage_failed(&mut self) -> Result<(), Violation> {
        self.sync_failed = true;
        self.crash(false)
    }

    fn crash(&mut self, power: bool) -> Result<(), Violation> {
        self.exports.clear();
        self.flushes.clear();
        self.gateway = None;
        self.power_lost = power;
        if power {
            self.host.power_loss();
        } else {
            self.host.disk.process_ends();
        }
        self.trace.fault(
            self.now,
            if power { "power" } else { "kill" },
            format_args!(""),
        );
        self.broken = false;
        if self.random.random_ratio(1, 4) {
            let changes = self.random.random_range(0..12);
            self.host.disk.die_after(Some(changes));
        }
        self.now += self.random.random_range(100..5_000);
        self.start()
    }

    fn fault(&mut self) -> Result<(), Violation> {
        match self.random.random_range(0..11) {
            0..3 => {
                let changes = self.random.random_range(0..25);
                self.trace
                    .note(self.now, format_args!("dies after {changes} changes"));
                self.host.disk.die_after(Some(changes));
                Ok(())
            }
            3 => self.crash(false),
            4 if !self.sync_failed => self.crash(true),
            5 | 6 => {
                let op = Op::ALL[self.random.random_range(0..Op::ALL.len())];
                self.sync_failed |= op != Op::ReadImage;
                self.trace.fault(self.now, "eio", format_args!("{op:?}"));
                self.host.disk.fail(op, self.random.random_range(0..4));
                Ok(())
            }
            7 => {
                let room = self.random.random_range(0..16 << 10);
                self.trace.fault(self.now, "full", format_args!("{room}"));
                self.host.disk.leave_room(room);
                Ok(())
            }
            8 => self.stop(),
            9 if !self.flipped => {
                self.flipped = self.host.disk.flip_bit();
                self.trace.fault(self.now, "flipped bit", format_args!(""));
                self.crash(false)
            }
            _ => {
                self.host.disk.make_room();
                if self.broken {
                    return self.storage_failed();
                }
                Ok(())
            }
        }
    }

    /// A stop in order: nothing is lost.
    fn stop(&mut self) -> Result<(), Violation> {
        self.host.disk.make_room();
        let Some(mut gateway) = self.gateway.take() else {
            return Ok(());
        };
        gateway.stepped.begin_stop();
        gateway.poke(self.now, &mut self.random);
        while !gateway.is_over() {
            let Some(due) = gateway.due() else {
                return violation!("the stop does not end");
            };
            self.now = due.max(self.now);
            gateway.turn(self.now, &mut self.random);
            if self.host.disk.is_dead() {
                self.gateway = Some(gateway);
                return self.crash(false);
            }
        }
        self.trace.note(self.now, format_args!("stopped in order"));
        let had_error = self.host.disk.figures().1 > 0;
        if !had_error && self.mode == GroupMode::Async {
            self.flushed(u64::MAX);
        }
        self.exports.clear();
        self.flushes.clear();
        drop(gateway);
        self.power_lost = false;
        self.host.disk.process_ends();
        self.trace.reach("orderly stop");
        self.start()
    }

    fn finish(&mut self) -> Result<(), Violation> {
        if self.over {
            return Ok(());
        }
        self.host.disk.heal();
        self.host.disk.die_after(None);
        self.stop()?;
        if self.over {
            return Ok(());
        }
        self.stop()?;
        let stamps = self.host.image_stamps();
        for (place, sectors) in stamps.iter().enumerate() {
            if *sectors != [Some(shown(self.newest[place])); 2] {
                return violation!(
                    "at the end the image has {sectors:?} at {place}, the reference {:x}",
                    self.newest[place]
                );
            }
        }
        Ok(())
    }
}
