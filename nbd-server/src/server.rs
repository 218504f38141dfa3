//! Listeners, connection limits, shutdown.
