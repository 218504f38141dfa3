//! Certificates for one test: an authority, a server, and clients of several kinds, in the layout that libnbd and QEMU expect.

use std::path::{Path, PathBuf};

use nbd_server::tls::{TlsConfig, TlsMode};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

/// An authority, and the directory that everything goes to.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    dir: PathBuf,
}

/// What a client's certificate is like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    Now,
    Expired,
    NotYet,
}

impl Authority {
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let dir = dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), &pem).unwrap();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, params: &CertificateParams, dir: &Path, role: &str) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
    }

    fn params(name: &str, valid: Valid) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if valid == Valid::Expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        if valid == Valid::NotYet {
            params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        }
        params
    }

    /// A server's certificate for localhost, and the configuration with it.
    pub fn server(&self, valid: Valid, mode: TlsMode) -> TlsConfig {
        let mut params = Self::params("server", valid);
        params.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into().unwrap()),
            SanType::IpAddress("127.0.0.1".parse().unwrap()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.write(&params, &self.dir, "server");
        TlsConfig {
            mode,
            certificate: self.path("server-cert.pem"),
            key: self.path("server-key.pem"),
            client_ca: Some(self.path("ca-cert.pem")),
            unix_in_clear: false,
        }
    }

    /// A directory for a client of that name whose own certificate is this authority's and which trusts `trusted`.
    pub fn client(&self, name: &str, valid: Valid, trusted: &Self) -> String {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        let mut params = Self::params(name, valid);
        params.subject_alt_names = vec![
            SanType::DnsName(format!("{name}.example").try_into().unwrap()),
            SanType::URI(format!("spiffe://example/{name}").try_into().unwrap()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.write(&params, &dir, "client");
        std::fs::write(dir.join("ca-cert.pem"), &trusted.pem).unwrap();
        dir.to_str().unwrap().to_owned()
    }

    /// A directory for a client without a certificate.
    pub fn nobody(&self) -> String {
        let dir = self.dir.join("nobody");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), &self.pem).unwrap();
        dir.to_str().unwrap().to_owned()
    }
}
