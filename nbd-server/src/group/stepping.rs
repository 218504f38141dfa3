//! The form that the threads of a group share: they take turns of work and say what they wait for. A thread loops over the turns; a
//! simulator takes them one by one, with a clock of its own. Knows nothing of the work.

use std::time::Instant;

/// What follows a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Another turn.
    Turn,
    /// A turn when a message comes, or at this time.
    Wait(Option<Instant>),
    /// A turn at this time, and no message before. A stop of the group is looked for meanwhile.
    Pause(Instant),
    /// No turn any more.
    Over,
}
