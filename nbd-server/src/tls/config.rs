//! The keys under `[tls]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Whether clients use TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TlsMode {
    /// A client may do nothing before it uses TLS.
    #[default]
    Require,
    /// A client may use TLS or not. An attacker on the way can make it not.
    Allow,
    /// No TLS.
    Off,
}

/// The `[tls]` table of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// Whether clients use TLS.
    #[serde(default)]
    pub mode: TlsMode,
    /// The server's certificate, followed by those between it and the authority's: PEM.
    pub certificate: PathBuf,
    /// Its private key: PEM.
    pub key: PathBuf,
    /// Certificates of the authorities that make clients' certificates: PEM. With it, only clients with such a certificate get in
    /// over TLS; without it, anybody does.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// With `mode = "require"`: unix sockets go without TLS all the same. They are open to their owner only, and access rules know
    /// users there.
    #[serde(default)]
    pub unix_in_clear: bool,
}
