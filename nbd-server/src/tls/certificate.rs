//! What is read from a certificate beside what TLS itself verifies: the names that access rules are about, and the time that it is valid.

use std::path::Path;
use std::time::SystemTime;

use x509_cert::Certificate;
use x509_cert::der::asn1::{Ia5StringRef, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::der::{Any, Decode, Tagged};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::TlsError;
use crate::access::CertificateNames;

/// id-at-commonName (RFC 5280, appendix A.1).
const COMMON_NAME: &str = "2.5.4.3";
/// id-ce-subjectAltName (RFC 5280, section 4.2.1.6).
const SUBJECT_ALT_NAME: &str = "2.5.29.17";

/// The names in a verified certificate. One that can't be understood has none: no rule about names will fit it.
pub(crate) fn names(der: &[u8]) -> CertificateNames {
    let Ok(certificate) = Certificate::from_der(der) else {
        return CertificateNames::default();
    };
    let certificate = certificate.tbs_certificate;
    let mut names = CertificateNames::default();
    let attributes = certificate.subject.0.iter().flat_map(|set| set.0.iter());
    names.common_name = attributes
        .filter(|attribute| attribute.oid.to_string() == COMMON_NAME)
        .find_map(|attribute| text(&attribute.value));
    let extensions = certificate.extensions.unwrap_or_default();
    let alternative = extensions
        .iter()
        .find(|extension| extension.extn_id.to_string() == SUBJECT_ALT_NAME)
        .and_then(|extension| SubjectAltName::from_der(extension.extn_value.as_bytes()).ok());
    for name in alternative.map(|names| names.0).unwrap_or_default() {
        match name {
            GeneralName::DnsName(name) => names.dns.push(name.to_string()),
            GeneralName::UniformResourceIdentifier(uri) => names.uris.push(uri.to_string()),
            _ => {}
        }
    }
    names
}

fn text(value: &Any) -> Option<String> {
    use x509_cert::der::Tag;
    let text = match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().ok()?.to_string(),
        Tag::PrintableString => value
            .decode_as::<PrintableStringRef<'_>>()
            .ok()?
            .to_string(),
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().ok()?.to_string(),
        Tag::TeletexString => value.decode_as::<TeletexStringRef<'_>>().ok()?.to_string(),
        _ => return None,
    };
    Some(text)
}

/// Refuses a certificate that is not valid at `now`.
pub(super) fn check_time(der: &[u8], path: &Path, now: SystemTime) -> Result<(), TlsError> {
    let certificate = Certificate::from_der(der).map_err(|error| TlsError::Certificate {
        path: path.to_owned(),
        what: error.to_string(),
    })?;
    let validity = certificate.tbs_certificate.validity;
    let (from, until) = (validity.not_before, validity.not_after);
    let how = if now > until.to_system_time() {
        format!("expired at {until}")
    } else if now < from.to_system_time() {
        format!("is valid from {from} only")
    } else {
        return Ok(());
    };
    Err(TlsError::NotValidNow {
        path: path.to_owned(),
        how,
    })
}
