//! Writes one object piece by piece, with a few pieces under way at once. What is not finished leaves nothing behind.

use bytes::Bytes;
use object_store::{ObjectStoreExt, WriteMultipart};

use super::{ObjectError, Objects};

/// Bytes that go to a server at once: stores want 5 MiB at least, and count 10,000 of them for an object at most, so an object of up to 80 GB.
const PART: usize = 8 << 20;
/// Parts under way.
const PARTS: usize = 4;

/// An object that is being written; see [`Objects::put_stream`]. Dropping it leaves no object.
#[derive(Debug)]
pub struct Upload {
    objects: Objects,
    name: String,
    /// None once it is over.
    writer: Option<WriteMultipart>,
}

impl Upload {
    pub(super) fn begin(objects: &Objects, name: &str) -> Result<Self, ObjectError> {
        let path = objects.path(name)?;
        let begun = objects.ask("write", name, |store| async move {
            store.put_multipart(&path).await
        })?;
        Ok(Self {
            objects: objects.clone(),
            name: name.to_owned(),
            writer: Some(WriteMultipart::new_with_chunk_size(begun, PART)),
        })
    }

    /// Adds a piece of any size. Waits while too much is under way.
    ///
    /// # Errors
    /// [`ObjectError`]; then nothing of the object remains.
    pub fn write(&mut self, data: Bytes) -> Result<(), ObjectError> {
        let Some(mut writer) = self.writer.take() else {
            return Err(self.over());
        };
        let written = self.objects.ask("write", &self.name, |_| async move {
            match writer.wait_for_capacity(PARTS).await {
                Ok(()) => {
                    writer.put(data);
                    Ok(writer)
                }
                Err(error) => {
                    // The first error is the one to tell.
                    let _ = writer.abort().await;
                    Err(error)
                }
            }
        })?;
        self.writer = Some(written);
        Ok(())
    }

    /// Ends it: when it returns, the object is there and durable.
    ///
    /// # Errors
    /// [`ObjectError`]; then there is no such object, or what it was before.
    pub fn finish(mut self) -> Result<(), ObjectError> {
        let Some(writer) = self.writer.take() else {
            return Err(self.over());
        };
        self.objects
            .ask("write", &self.name, |_| writer.finish())
            .map(|_| ())
    }

    fn over(&self) -> ObjectError {
        ObjectError::Failed {
            action: "write",
            name: self.name.clone(),
            place: self.objects.place().clone(),
            why: "it has failed before".to_owned(),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(writer) = self.writer.take() {
            // A server would keep the parts, and have them paid for.
            let _ = self.objects.ask("give up", &self.name, |_| writer.abort());
        }
    }
}
