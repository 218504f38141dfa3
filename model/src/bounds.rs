//! How far the checker looks: the faults that may happen and how much the guest does meanwhile. Knows nothing of the
//! protocol.

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// A host dies, with all processes on it. It can come back, with a standby that holds nothing.
    HostCrash,
    /// The VM's QEMU dies, its coordinator lives.
    VmDies,
    /// The host of the gateway dies, between two requests or behind any log operation of one. It comes back, without what was held.
    GatewayCrash,
    /// The process of the gateway dies, in the same places. It comes back with what was held.
    GatewayRestart,
    /// The checkpoint channel breaks, or one side suspects the other without a reason. Each side notices when it likes.
    LinkBreak,
    /// A checkpoint is altered on its way.
    Damage,
    /// A standby loses what it holds (its QEMU ends, say) and lives on.
    StandbyDrop,
    /// A request for the gateway is asked again, and one copy is carried out at any time, or never.
    LateRequest,
    /// The gateway seals, and its answer is lost.
    SealAnswerLost,
    /// A seal that its source has given up is carried out later, or never.
    LateSeal,
    /// The log has no space for one operation.
    LogFull,
    /// An operator starts the VM from its disks on a host that is down, whatever the others do.
    ColdStart,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::HostCrash,
        Self::VmDies,
        Self::GatewayCrash,
        Self::GatewayRestart,
        Self::LinkBreak,
        Self::Damage,
        Self::StandbyDrop,
        Self::LateRequest,
        Self::SealAnswerLost,
        Self::LateSeal,
        Self::LogFull,
        Self::ColdStart,
    ];
}

/// What one run of the checker covers: everything that can happen within these bounds.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// No checkpoint becomes due once the gateway has sealed this many epochs. Faults may cause a few more.
    pub epochs: u64,
    /// Steps of the guest: each changes its memory, writes to its disk and sends a packet. At most
    /// [`MAX_STEPS`](crate::history::MAX_STEPS).
    pub steps: u8,
    /// Epochs in flight at a source.
    pub in_flight: usize,
    /// Faults in one run, of all kinds together.
    pub faults: u8,
    /// Which kinds.
    pub kinds: Vec<Fault>,
    /// A host that has taken the VM over looks for a standby in its turn, so that it can be taken over again.
    pub protect_again: bool,
}
