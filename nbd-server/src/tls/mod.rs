//! TLS as the server's side sees it: which files it is made of, whether clients have to use it, and the names in a client's
//! certificate. Sockets are the matter of [`crate::connection`].

mod certificate;
mod config;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

pub(crate) use certificate::names;
pub use config::{TlsConfig, TlsMode};

/// Why TLS can't be set up from the files that the configuration names.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read, or holds no PEM of the kind that is needed.
    #[error("the file {path} gives no {what}; it has to be readable and to hold it as PEM")]
    File {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// A certificate is damaged.
    #[error("the certificate in {path} can't be understood: {what}")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A certificate is not valid now.
    #[error(
        "the certificate in {path} {how}; put a valid one there, or set the clock of this host"
    )]
    NotValidNow {
        /// The file.
        path: PathBuf,
        /// Since or until when.
        how: String,
    },
    /// The private key is another certificate's.
    #[error(
        "the key in {key} does not belong to the certificate in {certificate}; use the two that were made together"
    )]
    Mismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        certificate: PathBuf,
    },
    /// The key is of a kind that can't be used.
    #[error("the key in {key} can't be used; RSA, ECDSA (P-256, P-384) and Ed25519 can")]
    Key {
        /// The file.
        key: PathBuf,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The settings don't go together.
    #[error("TLS can't be set up")]
    Setup(#[source] rustls::Error),
}

/// The server's certificate and what it expects of its clients, loaded and checked.
#[derive(Clone, Debug)]
pub struct Tls {
    settings: Arc<ServerConfig>,
    required: bool,
    unix_in_clear: bool,
    /// The server's own certificate, and those that follow it.
    chain: Vec<CertificateDer<'static>>,
    /// Authorities of clients' certificates. None: clients are not asked for one.
    authorities: Vec<CertificateDer<'static>>,
}

impl PartialEq for Tls {
    /// Settings are made of the rest; the key belongs to the certificate.
    fn eq(&self, other: &Self) -> bool {
        self.required == other.required
            && self.unix_in_clear == other.unix_in_clear
            && self.chain == other.chain
            && self.authorities == other.authorities
    }
}

impl Tls {
    /// Loads the files of `config`. `None`: it says that there is no TLS.
    ///
    /// # Errors
    /// [`TlsError`], also for a certificate that is not valid now: clients would refuse it one by one.
    pub fn load(config: &TlsConfig) -> Result<Option<Self>, TlsError> {
        let required = match config.mode {
            TlsMode::Off => return Ok(None),
            TlsMode::Allow => false,
            TlsMode::Require => true,
        };
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?;
        let mut authorities = Vec::new();
        let builder = match &config.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                authorities = certificates(path)?;
                let mut roots = RootCertStore::empty();
                for certificate in &authorities {
                    roots
                        .add(certificate.clone())
                        .map_err(|e| TlsError::Certificate {
                            path: path.clone(),
                            what: e.to_string(),
                        })?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                        .build()
                        .map_err(|e| TlsError::Certificate {
                            path: path.clone(),
                            what: e.to_string(),
                        })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let identity = identity(config, &provider)?;
        let chain = identity.cert.clone();
        let mut settings =
            builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(identity)));
        // Connections last: resuming would only keep secrets in memory, and rights that a new certificate no longer gives.
        settings.session_storage = Arc::new(NoServerSessionStorage {});
        settings.send_tls13_tickets = 0;
        Ok(Some(Self {
            settings: Arc::new(settings),
            required,
            unix_in_clear: config.unix_in_clear,
            chain,
            authorities,
        }))
    }

    /// True when a client may do nothing before it uses TLS. `unix`: at a unix socket.
    pub fn required(&self, unix: bool) -> bool {
        self.required && !(unix && self.unix_in_clear)
    }

    /// True when only clients with a certificate get in.
    pub fn verifies_clients(&self) -> bool {
        !self.authorities.is_empty()
    }

    /// The server's side of one new connection.
    pub(crate) fn connection(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(Arc::clone(&self.settings))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::File {
        path: path.to_owned(),
        what: "certificate",
        source,
    };
    let certificates = CertificateDer::pem_file_iter(path).map_err(error)?;
    let certificates: Vec<_> = certificates.collect::<Result<_, _>>().map_err(error)?;
    if certificates.is_empty() {
        return Err(error(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn identity(
    config: &TlsConfig,
    provider: &rustls::crypto::CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let (path, key) = (&config.certificate, &config.key);
    let chain = certificates(path)?;
    if let Some(own) = chain.first() {
        certificate::check_time(own, path, SystemTime::now())?;
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::File {
        path: key.clone(),
        what: "private key",
        source,
    })?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => TlsError::Mismatch {
            key: key.clone(),
            certificate: path.clone(),
        },
        rustls::Error::InvalidCertificate(what) => TlsError::Certificate {
            path: path.clone(),
            what: format!("{what:?}"),
        },
        source => TlsError::Key {
            key: key.clone(),
            source,
        },
    })
}
