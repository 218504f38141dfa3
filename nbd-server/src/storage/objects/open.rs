//! Opens the objects of a place: which store it is, with which environment, and how patiently it is asked.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use tokio::runtime::{Builder, Runtime};

use super::{CONNECT, ObjectError, Objects, PATIENCE, Place, Shared, TRY};

/// Threads of the runtime: they wait for sockets, and sign what is sent.
const THREADS: usize = 2;

pub(super) fn open(
    place: &Place,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Objects, ObjectError> {
    let unusable = |why: String| ObjectError::Unusable {
        place: place.clone(),
        why,
    };
    let (store, prefix): (Arc<dyn ObjectStore>, String) = match place {
        Place::Directory(path) => {
            if !path.is_dir() {
                return Err(unusable("there is no such directory".to_owned()));
            }
            let store = LocalFileSystem::new_with_prefix(path)
                .map_err(|error| unusable(error.to_string()))?;
            (Arc::new(store.with_fsync(true)), String::new())
        }
        Place::S3 { bucket, prefix } => {
            let store = bucket_store(bucket, environment).map_err(unusable)?;
            let prefix = match prefix.as_str() {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            };
            (store, prefix)
        }
    };
    let runtime = runtime().map_err(|error| unusable(error.to_string()))?;
    Ok(Objects {
        shared: Arc::new(Shared {
            place: place.clone(),
            store,
            prefix,
            runtime: Mutex::new(Some(runtime)),
        }),
    })
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("objects")
        .enable_all()
        .build()
}

fn bucket_store(
    bucket: &str,
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Arc<dyn ObjectStore>, String> {
    // Fails if there is one already, which will do as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::new();
    for (name, value) in environment {
        let pair = name.to_str().zip(value.to_str());
        let Some((name, value)) = pair.filter(|(name, _)| name.starts_with("AWS_")) else {
            continue;
        };
        // There are more of these variables than this crate knows.
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let builder = builder.with_bucket_name(bucket);
    let endpoint = builder
        .get_config_value(&AmazonS3ConfigKey::S3Endpoint)
        .or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let seconds = |time: std::time::Duration| format!("{} seconds", time.as_secs());
    let options = ClientOptions::new()
        .with_config(ClientConfigKey::Timeout, seconds(TRY))
        .with_config(ClientConfigKey::ConnectTimeout, seconds(CONNECT))
        .with_allow_http(plain);
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: 10,
        retry_timeout: PATIENCE,
    };
    let store = builder
        .with_client_options(options)
        .with_retry(retry)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(store))
}

/// Makes a directory and those above it, so that they are still there after a power failure.
pub(super) fn create_directory(place: &Place) -> Result<(), ObjectError> {
    let Some(path) = place.directory() else {
        return Ok(());
    };
    make(path).map_err(|error| ObjectError::Unusable {
        place: place.clone(),
        why: format!("the directory can't be made: {error}"),
    })
}

fn make(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make(parent)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        done => done?,
    }
    File::open(parent)?.sync_all()
}

/// What was removed from a directory stays away after a power failure.
pub(super) fn sync_directory_of(place: &Place, name: &str) -> Result<(), ObjectError> {
    let Some(path) = place.directory().map(|path| path.join(name)) else {
        return Ok(());
    };
    let synced = match path.parent().map(File::open) {
        // Another one has removed the directory meanwhile.
        Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Some(parent) => parent.and_then(|parent| parent.sync_all()),
        None => Ok(()),
    };
    synced.map_err(|error| ObjectError::Failed {
        action: "remove",
        name: name.to_owned(),
        place: place.clone(),
        why: error.to_string(),
    })
}
