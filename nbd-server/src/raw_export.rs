//! A raw image file or block device as an export in sync mode.
