//! Requests and replies after the handshake, without I/O.
