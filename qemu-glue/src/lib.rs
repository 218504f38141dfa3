//! Drives an unmodified QEMU: launches it on a shared RAM file, stops and saves it many times a second, finds the pages
//! that it wrote, and resumes a standby QEMU from what was saved. Knows no commit protocol, no gateway and no network.
//!
//! The order of calls for a protected VM:
//!
//! 1. [`SourceVm::launch`], [`SourceVm::resume`]: the guest runs.
//! 2. [`SourceVm::start_tracking`], then [`SourceVm::copy_base`] until it is done: the base copy, beside the running guest.
//! 3. Per epoch: [`SourceVm::stop`], then [`Stopped::save`] (with the seal of the disks beside it), [`Stopped::resume`].
//!    What the guest sends can be held by an [`OutputGate`] ([`SourceVm::attach_gate`]), which is cut while the guest is stopped.
//! 4. On the backup: [`StandbyVm::launch`] ahead of time, [`GuestRam::write_pages`] for what is merged,
//!    [`StandbyVm::resume_from`] at the takeover, which gives a [`SourceVm`] again.

mod accelerator;
mod arguments;
mod description;
pub mod device_state;
mod dirty_pages;
mod dirty_watch;
mod dirty_window;
mod error;
mod fault_count;
mod fingerprint;
mod gate;
mod guest_ram;
mod launch;
mod observer;
mod page_hash;
mod page_set;
mod pagemap_scan;
mod pause;
mod qmp;
mod reset;
mod source_vm;
mod standby_vm;
mod sys;
mod tracker_thread;
mod watch_socket;

pub use description::{Accelerator, DiskAttachment, NbdServer, Role, RuntimePlace, VmDescription};
pub use device_state::{DeviceStateChoice, DeviceStateKind, DeviceStream};
pub use dirty_pages::{DirtyTracker, TrackerChoice, TrackerKind};
pub use dirty_watch::DirtyWatch;
pub use dirty_window::{DirtySummary, DirtyWindow};
pub use error::{Error, Result};
pub use fingerprint::Fingerprint;
pub use gate::{Backlog, Cut, GateCounts, GateState, OutputGate};
pub use guest_ram::GuestRam;
pub use observer::{BlockCounters, KvmFigure, Observer, Vcpu};
pub use page_set::{PAGE_SIZE, PageRange, PageSet};
pub use pause::{PauseParts, ResumeParts};
pub use qmp::VmEvent;
pub use reset::reset;
pub use source_vm::{SourceVm, Stopped};
pub use standby_vm::StandbyVm;
pub use tracker_thread::BaseCursor;
