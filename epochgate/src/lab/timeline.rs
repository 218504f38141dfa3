//! What the demos tell, line by line with the time since they began.

use coordinator::report::{Report, Stamped, now_us};
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{bytes, millis};

/// The timeline on the terminal. Silent with `--json`.
pub(crate) struct Timeline {
    began_us: u64,
    quiet: bool,
}

impl Timeline {
    /// Begins now.
    pub(crate) fn new(quiet: bool) -> Self {
        Self {
            began_us: now_us(),
            quiet,
        }
    }

    pub(crate) fn say(&self, text: &str) {
        self.say_at(now_us(), text);
    }

    /// The same for an instant in microseconds since 1970.
    pub(crate) fn say_at(&self, at_us: u64, text: &str) {
        if !self.quiet {
            let since = at_us.saturating_sub(self.began_us);
            println!(
                "{:>4}.{:03} s  {text}",
                since / 1_000_000,
                since / 1000 % 1000
            );
        }
    }

    fn bar(&self, total: u64, what: &'static str) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let style =
            ProgressStyle::with_template("            {msg} {wide_bar} {bytes}/{total_bytes}");
        let bar = ProgressBar::new(total).with_message(what);
        match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }

    /// What the source says until it is protected.
    pub(crate) fn follow_start(&self, report: &Report, bar: &mut Option<ProgressBar>) {
        match report {
            Report::VmStarted {
                pid,
                qemu,
                dirty_tracker,
                device_state,
                generation,
                ..
            } => self.say(&format!(
                "QEMU {qemu} runs (pid {pid}), generation {generation}, dirty pages by {dirty_tracker}, device state by {device_state}; sync mode: not protected yet"
            )),
            Report::StandbyJoined { standby } => {
                self.say(&format!("standby {standby} is ready, its own QEMU waits; first copy of the memory"));
            }
            Report::FirstCopy { done, total, sent } => {
                let bar = bar.get_or_insert_with(|| self.bar(*total, "first copy"));
                bar.set_position(*done);
                if done >= total {
                    bar.finish_and_clear();
                    self.say(&format!("{} of {} were not zero and were sent", bytes(*sent), bytes(*total)));
                }
            }
            Report::Protected { epoch, .. } => {
                self.say(&format!("PROTECTED: epoch {epoch} is committed, disk and memory"));
            }
            _ => {}
        }
    }

    /// What the standby did after the kill.
    pub(crate) fn took_over(&self, killed_at: u64, resumed: &Stamped) {
        if let Report::Resumed {
            epoch,
            takeover_us,
            merge_us,
            resume_us,
        } = resumed.report
        {
            let total = takeover_us + merge_us + resume_us;
            self.say_at(
                resumed.t_us.saturating_sub(total),
                "the standby noticed and asks the gateway for the disks",
            );
            self.say_at(
                resumed.t_us.saturating_sub(merge_us + resume_us),
                &format!("generation raised, the old source is fenced; the last committed epoch is {epoch}"),
            );
            self.say_at(
                resumed.t_us,
                &format!(
                    "THE GUEST GOES ON at the standby, {:.1} ms after the kill",
                    millis(resumed.t_us.saturating_sub(killed_at))
                ),
            );
        }
    }
}
