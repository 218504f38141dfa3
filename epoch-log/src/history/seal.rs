//! The seal behind the last batch: it tells damage from a write that a crash has cut short. Knows nothing of what is in a batch.

use std::io::IoSlice;

use super::History;
use super::capture::Writer;
use super::format::Seal;

impl History {
    /// Seals what was saved, as the images were changed. It need not be durable: it only helps to see damage.
    pub(super) fn seal(&self, writer: &mut Writer) {
        if writer.sealed == writer.end || writer.closing {
            return;
        }
        let file = std::sync::Arc::clone(&self.live().active.file);
        let seal = Seal {
            offset: writer.end,
            previous: writer.previous,
        };
        let written = file
            .file
            .write_at(&mut [IoSlice::new(&seal.encode(file.salt))], writer.end);
        match written {
            Ok(()) => writer.sealed = writer.end,
            Err(error) => tracing::debug!(%error, "no room for a seal of the history"),
        }
    }
}
