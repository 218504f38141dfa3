//! The past of a group: every epoch that an image has lost by a later one can be read again, as far back as the configuration says.

mod config;

pub use config::HistoryConfig;
