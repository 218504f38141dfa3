//! What a configuration allows though it is seldom meant. It refuses nothing.

use super::GatewayConfig;
use crate::storage_check::storage_advice;
use crate::tls::TlsMode;

impl GatewayConfig {
    /// What is worth a second look, each as a sentence for whoever wrote the configuration.
    pub fn advice(&self) -> Vec<&'static str> {
        let mut advice = Vec::new();
        let others_connect = self
            .listen
            .iter()
            .any(|address| !address.starts_with("unix:"));
        let unverified =
            |tls: &crate::tls::TlsConfig| tls.mode == TlsMode::Require && tls.client_ca.is_none();
        if others_connect && self.tls.as_ref().is_some_and(unverified) {
            advice.push(
                "TLS is required, but without client_ca no client is asked for a certificate: everybody who can connect gets in, and \
                 [[access]] rules that name certificates match nobody",
            );
        }
        let vsock = |address: &String| address.starts_with("vsock:");
        let required = self.tls.as_ref().map(|tls| tls.mode) == Some(TlsMode::Require);
        if self.listen.iter().any(vsock) && self.access.is_empty() && !required {
            advice.push(
                "every VM and every user of this machine can connect over vsock and attach everything; say who may by [[access]] rules \
                 with \"cid:\", or require TLS",
            );
        }
        advice
    }

    /// What is worth a second look about the storage below, as the system describes it now.
    pub fn storage_advice(&self) -> Vec<String> {
        storage_advice(self)
    }

    /// Says all of it in the log. Returns what is about storage.
    pub(super) fn warn(&self) -> Vec<String> {
        for advice in self.advice() {
            tracing::warn!("{advice}");
        }
        let storage = self.storage_advice();
        for advice in &storage {
            tracing::warn!("{advice}");
        }
        storage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{AccessRule, Rights};

    #[test]
    fn vsock_without_rules_is_worth_a_word() {
        let mut config = GatewayConfig {
            listen: vec!["vsock:*:10809".to_owned()],
            ..GatewayConfig::default()
        };
        assert_eq!(config.advice().len(), 1);
        config.access.push(AccessRule {
            client: "cid:3".to_owned(),
            export: "*".to_owned(),
            rights: Rights::ReadWrite,
        });
        assert!(config.advice().is_empty());
        config.access.clear();
        config.listen = vec!["unix:/run/nbd.sock".to_owned()];
        assert!(config.advice().is_empty());
    }
}
