//! Storage for whole objects: a directory, or a bucket of an S3-compatible store. All calls block, from whatever thread they come; behind them is
//! a small runtime of our own and the crate `object_store`. Knows nothing of what the objects are.
//!
//! What holds for every place:
//! - An object is there whole or not at all, also after a crash. In a directory it is written beside its name, synced, renamed, and the
//!   directory is synced.
//! - What returned without an error is durable.
//! - A request to a server is tried again for [`PATIENCE`] and then fails, so no call hangs for ever.
//!
//! A bucket's endpoint, region and credentials are taken from the environment, by the names that all AWS tools have: `AWS_ENDPOINT_URL`,
//! `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, and those of roles. HTTP without TLS is used only if the
//! endpoint says `http://`.

mod error;
mod open;
mod place;
mod upload;

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use object_store::path::Path;
use object_store::{
    GetResult, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload,
};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt;

pub use error::ObjectError;
pub use place::{Place, PlaceError};
pub use upload::Upload;

/// How long a request to a server is tried again.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long one try may take, with all its data.
const TRY: Duration = Duration::from_secs(120);
/// How long a server may take to take a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meta {
    /// Its name, below the place.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// When it was written, by the clock of the place.
    pub modified: SystemTime,
}

/// The objects of a place. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Objects {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    place: Place,
    store: Arc<dyn ObjectStore>,
    /// What all names begin with, with a slash at its end; empty for a directory.
    prefix: String,
    /// None once it is closed.
    runtime: Mutex<Option<Runtime>>,
}

impl Shared {
    fn close(&self) {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        // Waiting for its threads would be forbidden where the last clone goes away inside another runtime.
        if let Some(runtime) = runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

impl Objects {
    /// The objects of a place that is there. Does not ask a server yet.
    ///
    /// # Errors
    /// [`ObjectError::Unusable`]
    pub fn open(place: &Place) -> Result<Self, ObjectError> {
        open::open(place, std::env::vars_os())
    }

    /// The same, with these variables in place of the environment.
    ///
    /// # Errors
    /// [`ObjectError::Unusable`]
    pub fn open_with(place: &Place, environment: &[(String, String)]) -> Result<Self, ObjectError> {
        let pairs = environment.iter();
        open::open(
            place,
            pairs.map(|(name, value)| (name.into(), value.into())),
        )
    }

    /// The same; a directory is made, for its owner alone, if it is not there.
    ///
    /// # Errors
    /// [`ObjectError::Unusable`]
    pub fn create(place: &Place) -> Result<Self, ObjectError> {
        open::create_directory(place)?;
        Self::open(place)
    }

    /// Gives up all requests that are under way, and all later ones. They fail.
    pub fn close(&self) {
        self.shared.close();
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.shared.place
    }

    /// Writes an object, over what it was.
    ///
    /// # Errors
    /// [`ObjectError`]
    pub fn put(&self, name: &str, data: Bytes) -> Result<(), ObjectError> {
        self.put_as(name, data, PutMode::Overwrite)
    }

    /// Writes an object that is not there yet: of many who try, one succeeds.
    ///
    /// # Errors
    /// [`ObjectError::AlreadyThere`], and all others.
    pub fn put_new(&self, name: &str, data: Bytes) -> Result<(), ObjectError> {
        self.put_as(name, data, PutMode::Create)
    }

    fn put_as(&self, name: &str, data: Bytes, mode: PutMode) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        let options = PutOptions::from(mode);
        let put = |store: Arc<dyn ObjectStore>| async move {
            store
                .put_opts(&path, PutPayload::from_bytes(data), options)
                .await
        };
        self.ask("write", name, put).map(|_| ())
    }

    /// Begins to write an object of any size, piece by piece. It is there when [`Upload::finish`] has returned.
    ///
    /// # Errors
    /// [`ObjectError`]
    pub fn put_stream(&self, name: &str) -> Result<Upload, ObjectError> {
        Upload::begin(self, name)
    }

    /// Reads an object of at most `most` bytes.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`], [`ObjectError::TooLarge`], and all others.
    pub fn get(&self, name: &str, most: u64) -> Result<Bytes, ObjectError> {
        let path = self.path(name)?;
        let get = |store: Arc<dyn ObjectStore>| async move {
            let found = store.get(&path).await?;
            if found.meta.size > most {
                return Ok(Err(found.meta.size));
            }
            read(found, most).await
        };
        self.ask("read", name, get)?
            .map_err(|size| ObjectError::TooLarge {
                name: name.to_owned(),
                place: self.shared.place.clone(),
                size,
                most,
            })
    }

    /// Reads these bytes of an object; fewer only if it ends before.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`], and all others.
    pub fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, ObjectError> {
        let path = self.path(name)?;
        let get = |store: Arc<dyn ObjectStore>| async move { store.get_range(&path, range).await };
        self.ask("read", name, get)
    }

    /// What is known of an object; none if it is not there.
    ///
    /// # Errors
    /// [`ObjectError`]
    pub fn head(&self, name: &str) -> Result<Option<Meta>, ObjectError> {
        let path = self.path(name)?;
        let head = |store: Arc<dyn ObjectStore>| async move { store.head(&path).await };
        match self.ask("look at", name, head) {
            Ok(meta) => Ok(self.meta(&meta)),
            Err(ObjectError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects whose names begin with `folder` and a slash, or all if it is empty; in no order. At most `most`: there are programs that fill buckets.
    ///
    /// # Errors
    /// [`ObjectError`]; [`ObjectError::Failed`] if there are more than `most`.
    pub fn list(&self, folder: &str, most: usize) -> Result<Vec<Meta>, ObjectError> {
        let path = match folder {
            "" => Path::parse(&self.shared.prefix).map_err(|_| self.bad_name(folder))?,
            folder => self.path(folder)?,
        };
        let list = |store: Arc<dyn ObjectStore>| async move {
            let mut found = Vec::new();
            let mut listing = store.list(Some(&path));
            while let Some(meta) = listing.next().await {
                found.push(meta?);
                if found.len() > most {
                    break;
                }
            }
            Ok(found)
        };
        let found = self.ask("list", folder, list)?;
        if found.len() > most {
            return Err(ObjectError::Failed {
                action: "list",
                name: folder.to_owned(),
                place: self.shared.place.clone(),
                why: format!("there are more than {most} objects"),
            });
        }
        Ok(found.iter().filter_map(|meta| self.meta(meta)).collect())
    }

    /// Removes an object, for good when it returns. That it is not there is no error.
    ///
    /// # Errors
    /// [`ObjectError`]
    pub fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let path = self.path(name)?;
        let delete = |store: Arc<dyn ObjectStore>| async move { store.delete(&path).await };
        match self.ask("remove", name, delete) {
            Err(ObjectError::NotFound { .. }) => Ok(()),
            Ok(()) => open::sync_directory_of(&self.shared.place, name),
            failed => failed,
        }
    }

    /// Copies an object inside the place, over what was there.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`], and all others.
    pub fn copy(&self, from: &str, to: &str) -> Result<(), ObjectError> {
        let (source, target) = (self.path(from)?, self.path(to)?);
        let copy = |store: Arc<dyn ObjectStore>| async move { store.copy(&source, &target).await };
        self.ask("copy", from, copy)
    }

    fn bad_name(&self, name: &str) -> ObjectError {
        ObjectError::Name {
            name: name.to_owned(),
        }
    }

    /// Where an object is in the store. Names lead nowhere else: no empty parts, no `..`.
    fn path(&self, name: &str) -> Result<Path, ObjectError> {
        let dots = name.split('/').any(|part| part == "." || part == "..");
        if name.is_empty() || dots || name.starts_with('/') || name.ends_with('/') {
            return Err(self.bad_name(name));
        }
        Path::parse(format!("{}{name}", self.shared.prefix)).map_err(|_| self.bad_name(name))
    }

    /// None for what is not below the prefix.
    fn meta(&self, meta: &ObjectMeta) -> Option<Meta> {
        let name = meta.location.as_ref().strip_prefix(&self.shared.prefix)?;
        Some(Meta {
            name: name.to_owned(),
            size: meta.size,
            modified: meta.last_modified.into(),
        })
    }

    /// Does it on the runtime and waits for it.
    fn ask<T, F>(
        &self,
        action: &'static str,
        name: &str,
        request: impl FnOnce(Arc<dyn ObjectStore>) -> F,
    ) -> Result<T, ObjectError>
    where
        F: Future<Output = object_store::Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let place = &self.shared.place;
        match self.run(request(Arc::clone(&self.shared.store))) {
            Some(done) => done.map_err(|error| ObjectError::new(&error, action, name, place)),
            None => Err(ObjectError::Failed {
                action,
                name: name.to_owned(),
                place: place.clone(),
                why: "the request was given up".to_owned(),
            }),
        }
    }

    /// What comes of a future; none if the runtime has gone, or the future has panicked.
    fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        // Not `block_on`, which panics where the calling thread is one of another runtime.
        let runtime = &self.shared.runtime;
        let runtime = runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.as_ref()?.spawn(async move {
            let _ = sender.send(future.await);
        });
        drop(runtime);
        receiver.recv().ok()
    }
}

/// All of an object. The size that a server names is not believed.
async fn read(found: GetResult, most: u64) -> object_store::Result<Result<Bytes, u64>> {
    if matches!(found.payload, GetResultPayload::File(..)) {
        let data = found.bytes().await?;
        return Ok(match data.len() as u64 {
            size if size > most => Err(size),
            _ => Ok(data),
        });
    }
    let mut data = BytesMut::new();
    let mut stream = found.into_stream();
    while let Some(piece) = stream.next().await {
        data.extend_from_slice(&piece?);
        if data.len() as u64 > most {
            return Ok(Err(data.len() as u64));
        }
    }
    Ok(Ok(data.freeze()))
}
