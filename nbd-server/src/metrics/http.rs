//! Serves the metrics over HTTP: `GET /metrics`, for anyone who reaches the address. It knows nothing of what it shows.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

use crate::server::{ListenError, SocketFile, bind_for_owner};

/// The text format of OpenMetrics, which Prometheus reads.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Scrapes at once; further ones wait to be accepted.
const MAX_CONNECTIONS: usize = 8;
/// A scrape that takes longer is cut, so that nobody can hold all of them.
const LIMIT: Duration = Duration::from_secs(10);
/// After a failed accept, rather than spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where the metrics are served: `127.0.0.1:9109`, or the path of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAddress {
    /// IP address and port.
    Tcp(SocketAddr),
    /// A unix socket, for its owner only.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = MetricsError;

    fn from_str(text: &str) -> Result<Self, MetricsError> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let address = text.strip_prefix("tcp:").unwrap_or(text);
        let address = address
            .parse()
            .map_err(|_| MetricsError::Address(text.to_owned()))?;
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Why metrics can't be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// It is no address.
    #[error(
        "\"{0}\" is no address for metrics; write an IP address with a port, such as 127.0.0.1:9109, or the path of a unix socket"
    )]
    Address(String),
    /// The unix socket can't be made.
    #[error(transparent)]
    Unix(#[from] ListenError),
    /// The system refused.
    #[error("the metrics can't be served on {address}; is it in use?")]
    System {
        /// The address.
        address: MetricsAddress,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct MetricsServer {
    address: MetricsAddress,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
    _file: Option<SocketFile>,
}

/// Makes the page. It may block.
pub type Render = dyn Fn() -> String + Send + Sync;

enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl MetricsServer {
    /// Serves on `address` what `render` makes.
    ///
    /// # Errors
    /// [`MetricsError`].
    pub fn start(address: &MetricsAddress, render: Arc<Render>) -> Result<Self, MetricsError> {
        let system = |source| MetricsError::System {
            address: address.clone(),
            source,
        };
        let (listener, bound, file) = match address {
            MetricsAddress::Tcp(wanted) => {
                let listener = std::net::TcpListener::bind(wanted).map_err(system)?;
                listener.set_nonblocking(true).map_err(system)?;
                let bound = MetricsAddress::Tcp(listener.local_addr().map_err(system)?);
                (Listener::Tcp(listener), bound, None)
            }
            MetricsAddress::Unix(path) => {
                let (listener, file) = bind_for_owner(path)?;
                listener.set_nonblocking(true).map_err(system)?;
                (Listener::Unix(listener), address.clone(), Some(file))
            }
        };
        let (stop, mut stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system)?;
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    served = accept(listener, render) => {
                        if let Err(error) = served {
                            tracing::error!(%error, "the metrics are no longer served");
                        }
                    }
                    // An error says that the gateway was dropped.
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
            // A page that is being made ends by itself.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(serve)
            .map_err(system)?;
        tracing::info!(address = %bound, "serving metrics");
        Ok(Self {
            address: bound,
            stop,
            thread: Some(thread),
            _file: file,
        })
    }

    /// The address, with the port that the system chose.
    pub fn address(&self) -> &MetricsAddress {
        &self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been reported by itself.
            drop(thread.join());
        }
    }
}

async fn accept(listener: Listener, render: Arc<Render>) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    match listener {
        Listener::Tcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                spawn(accepted, &places, &render).await;
            }
        }
        Listener::Unix(listener) => {
            let listener = UnixListener::from_std(listener)?;
            loop {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                spawn(accepted, &places, &render).await;
            }
        }
    }
}

async fn spawn<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    accepted: io::Result<S>,
    places: &Arc<Semaphore>,
    render: &Arc<Render>,
) {
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "cannot accept a scrape of the metrics");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            return;
        }
    };
    let Ok(place) = Arc::clone(places).acquire_owned().await else {
        return;
    };
    let render = Arc::clone(render);
    tokio::spawn(async move {
        let service = service_fn(|request| answer(request, Arc::clone(&render)));
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(LIMIT)
            .keep_alive(false);
        let served = http.serve_connection(TokioIo::new(stream), service);
        // Whoever is too slow, or speaks no HTTP, gets nothing.
        let _ = tokio::time::timeout(LIMIT, served).await;
        drop(place);
    });
}

async fn answer(
    request: Request<Incoming>,
    render: Arc<Render>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            match tokio::task::spawn_blocking(move || render()).await {
                Ok(text) => (StatusCode::OK, OPEN_METRICS, text),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics failed\n"),
            }
        }
        (&Method::GET | &Method::HEAD, _) => {
            plain(StatusCode::NOT_FOUND, "the metrics are at /metrics\n")
        }
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n"),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    Ok(response)
}

fn plain(status: StatusCode, text: &str) -> (StatusCode, &'static str, String) {
    (status, "text/plain; charset=utf-8", text.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let tcp = |text: &str| MetricsAddress::Tcp(text.parse().unwrap());
        let read = |text: &str| text.parse::<MetricsAddress>();
        assert_eq!(read("127.0.0.1:9109").unwrap(), tcp("127.0.0.1:9109"));
        assert_eq!(read("tcp:[::1]:9109").unwrap(), tcp("[::1]:9109"));
        assert_eq!(
            read("unix:/run/m").unwrap(),
            MetricsAddress::Unix("/run/m".into())
        );
        assert_eq!(
            read("/run/m").unwrap(),
            MetricsAddress::Unix("/run/m".into())
        );
        for wrong in ["", "9109", "host", "localhost:9109", "127.0.0.1"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("127.0.0.1:9109"), "{error}");
        }
    }
}
