//! The places between two steps at which a test or a bench can kill or stop this process (see `nbd_server::failpoint`).

/// Every failpoint of a source, in the order in which an epoch passes them.
pub const SOURCE: &[&str] = &[
    BEFORE_STOP,
    AFTER_STOP,
    AFTER_SEAL,
    AFTER_CAPTURE,
    AFTER_RESUME,
    MID_SEND,
    AFTER_SEND,
    AFTER_COMMIT1,
    AFTER_COMMIT2,
    AFTER_COMMIT3,
];

/// Every failpoint of a standby, in the order in which an epoch passes them.
pub const STANDBY: &[&str] = &[BEFORE_ACK, AFTER_ACK, BEFORE_MERGE, MID_MERGE, AFTER_MERGE];

/// Those of a standby that takes over, in their order.
pub const TAKEOVER: &[&str] = &[
    BEFORE_TAKEOVER,
    AFTER_TAKEOVER,
    BEFORE_RESUME,
    AFTER_RESUMED,
];

/// Within the first copy of the memory: at the source, then at the standby.
pub const FIRST_COPY: &[&str] = &[MID_BASE, STANDBY_MID_BASE];

pub(crate) const MID_BASE: &str = "source-mid-base";
pub(crate) const STANDBY_MID_BASE: &str = "standby-mid-base";
pub(crate) const BEFORE_ACK: &str = "standby-before-ack";
pub(crate) const AFTER_ACK: &str = "standby-after-ack";
pub(crate) const BEFORE_MERGE: &str = "standby-before-merge";
pub(crate) const MID_MERGE: &str = "standby-mid-merge";
pub(crate) const AFTER_MERGE: &str = "standby-after-merge";
pub(crate) const BEFORE_TAKEOVER: &str = "standby-before-takeover";
pub(crate) const AFTER_TAKEOVER: &str = "standby-after-takeover";
pub(crate) const BEFORE_RESUME: &str = "standby-before-resume";
pub(crate) const AFTER_RESUMED: &str = "standby-after-resume";
pub(crate) const BEFORE_STOP: &str = "source-before-stop";
pub(crate) const AFTER_STOP: &str = "source-after-stop";
pub(crate) const AFTER_SEAL: &str = "source-after-seal";
pub(crate) const AFTER_CAPTURE: &str = "source-after-capture";
pub(crate) const AFTER_RESUME: &str = "source-after-resume";
pub(crate) const MID_SEND: &str = "source-mid-send";
pub(crate) const AFTER_SEND: &str = "source-after-send";
pub(crate) const AFTER_COMMIT1: &str = "source-after-commit1";
pub(crate) const AFTER_COMMIT2: &str = "source-after-commit2";
pub(crate) const AFTER_COMMIT3: &str = "source-after-commit3";
