//! Drives one NBD connection: socket, batches, workers, replies.
