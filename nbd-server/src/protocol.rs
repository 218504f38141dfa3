//! The numbers of the NBD wire.
