//! The handshake of one connection as a state machine without I/O.
