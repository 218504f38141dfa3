//! The places between two steps at which a test or a bench can kill this process (see `nbd_server::failpoint`).

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
