//! The small modules that need `unsafe`, one system facility each. They check what they are given, so that the rest of
//! the crate is safe code.

pub(crate) mod process;
pub(crate) mod shared_memory;
pub(crate) mod write_protection;
