//! Who may attach which export, and how: the rules of the configuration, applied to one client and one disk.
//!
//! This module knows clients by what the transport vouches for ([`Client`]) and exports by their names. It knows no socket, no
//! protocol and no disk.

mod client;
mod guard;
mod pattern;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use client::{CertificateNames, Client, Peer};
pub(crate) use guard::Guard;
pub use pattern::Pattern;

/// What a client may do with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rights {
    /// Everything.
    ReadWrite,
    /// Attach it as a read-only export.
    ReadOnly,
    /// Neither attach nor see it.
    None,
}

/// One `[[access]]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Whom it is about: `*` is everybody; `uid:1000` a user at a unix socket; `ip:192.0.2.1` or `ip:192.0.2.0/24` an address or network;
    /// `cid:3` a virtual machine at vsock; anything else is matched, with `*` for any characters, against the names in the client's
    /// certificate: the common name of its subject, its DNS names and its URIs.
    pub client: String,
    /// Which export: its name, with `*` for any characters. A disk of a group is `group/disk`; a second name of it counts as well.
    pub export: String,
    /// What is allowed.
    pub rights: Rights,
}

/// A rule that can't be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the access rule for client \"{client}\" is wrong: {what}; write \"*\", \"uid:1000\", \"ip:192.0.2.0/24\", \"cid:3\" or the name of a certificate"
)]
pub struct AccessError {
    /// As it was written.
    client: String,
    what: &'static str,
}

/// All rules. Without any, everybody may do everything; with some, the first that matches client and export decides, and what
/// none matches is not allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules(Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    client: Who,
    export: Pattern,
    rights: Rights,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    Everybody,
    Uid(u32),
    Network { address: IpAddr, prefix: u8 },
    Cid(u32),
    Certificate(Pattern),
}

impl AccessRules {
    /// Reads the rules of a configuration, in their order.
    ///
    /// # Errors
    /// [`AccessError`] for the first that can't be understood.
    pub fn new(rules: &[AccessRule]) -> Result<Self, AccessError> {
        let rule = |rule: &AccessRule| {
            Ok(Rule {
                client: Who::parse(&rule.client)?,
                export: Pattern::new(&rule.export),
                rights: rule.rights,
            })
        };
        rules.iter().map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// True when there is no rule.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What `client` may do with the disk that has these `names`. All names of a disk are given, so that the answer is the same
    /// whichever of them was asked for.
    pub fn rights<S: AsRef<str>>(&self, client: &Client, names: &[S]) -> Rights {
        if self.is_empty() {
            return Rights::ReadWrite;
        }
        let decides = |rule: &&Rule| {
            rule.client.is(client) && names.iter().any(|name| rule.export.matches(name.as_ref()))
        };
        self.0
            .iter()
            .find(decides)
            .map_or(Rights::None, |rule| rule.rights)
    }
}

impl Who {
    fn parse(text: &str) -> Result<Self, AccessError> {
        let error = |what| AccessError {
            client: text.to_owned(),
            what,
        };
        if text.is_empty() {
            return Err(error("it is empty"));
        }
        if text == "*" {
            return Ok(Self::Everybody);
        }
        match text.split_once(':') {
            Some(("uid", uid)) => {
                let uid = uid.parse().map_err(|_| error("the uid is no number"))?;
                Ok(Self::Uid(uid))
            }
            Some(("cid", cid)) => {
                let cid = cid.parse().map_err(|_| error("the CID is no number"))?;
                Ok(Self::Cid(cid))
            }
            Some(("ip", network)) => {
                let (address, prefix) = match network.split_once('/') {
                    Some((address, prefix)) => (address, Some(prefix)),
                    None => (network, None),
                };
                let address: IpAddr = address
                    .parse()
                    .map_err(|_| error("the IP address is none"))?;
                let longest = if address.is_ipv4() { 32 } else { 128 };
                let prefix = match prefix {
                    None => Some(longest),
                    Some(prefix) => prefix.parse().ok().filter(|&prefix| prefix <= longest),
                };
                let prefix =
                    prefix.ok_or_else(|| error("the length of the network prefix is none"))?;
                Ok(Self::Network { address, prefix })
            }
            _ => Ok(Self::Certificate(Pattern::new(text))),
        }
    }

    /// Each kind looks only at what it is about: a certificate that calls itself "uid:0" is no user.
    fn is(&self, client: &Client) -> bool {
        match self {
            Self::Everybody => true,
            Self::Uid(uid) => matches!(client.peer, Peer::Unix { uid: peer } if peer == *uid),
            Self::Cid(cid) => matches!(client.peer, Peer::Vsock { cid: peer } if peer == *cid),
            Self::Network { address, prefix } => {
                matches!(client.peer, Peer::Ip(peer) if within(peer, *address, *prefix))
            }
            Self::Certificate(pattern) => client
                .certificate
                .as_ref()
                .is_some_and(|names| names.all().any(|name| pattern.matches(name))),
        }
    }
}

fn within(peer: IpAddr, network: IpAddr, prefix: u8) -> bool {
    // A socket for both families shows IPv4 clients as mapped ones.
    match (peer.to_canonical(), network) {
        (IpAddr::V4(peer), IpAddr::V4(network)) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(prefix.min(32)))
                .unwrap_or(0);
            (peer.to_bits() ^ network.to_bits()) & mask == 0
        }
        (IpAddr::V6(peer), IpAddr::V6(network)) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix.min(128)))
                .unwrap_or(0);
            (peer.to_bits() ^ network.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn rules(rules: &[(&str, &str, Rights)]) -> AccessRules {
        let rules: Vec<_> = rules
            .iter()
            .map(|(client, export, rights)| AccessRule {
                client: (*client).to_owned(),
                export: (*export).to_owned(),
                rights: *rights,
            })
            .collect();
        AccessRules::new(&rules).unwrap()
    }

    fn named(name: &str) -> Client {
        Client {
            peer: Peer::Ip("192.0.2.7".parse().unwrap()),
            certificate: Some(CertificateNames {
                common_name: Some(name.to_owned()),
                ..CertificateNames::default()
            }),
        }
    }

    fn at(peer: Peer) -> Client {
        Client {
            peer,
            certificate: None,
        }
    }

    #[test]
    fn without_rules_everything_is_allowed_and_with_rules_nothing_else() {
        let nobody = at(Peer::Unknown);
        assert_eq!(
            AccessRules::default().rights(&nobody, &["a"]),
            Rights::ReadWrite
        );
        let some = rules(&[("alice", "a", Rights::ReadWrite)]);
        assert_eq!(some.rights(&nobody, &["a"]), Rights::None);
        assert_eq!(some.rights(&named("alice"), &["a"]), Rights::ReadWrite);
        assert_eq!(some.rights(&named("alice"), &["b"]), Rights::None);
        assert_eq!(some.rights(&named("bob"), &["a"]), Rights::None);
    }

    #[test]
    fn the_first_match_decides_whichever_name_of_the_disk_is_asked_for() {
        let rules = rules(&[
            ("*", "vm/secret", Rights::None),
            ("ip:192.0.2.0/24", "vm/*", Rights::ReadOnly),
            ("*.example", "*", Rights::ReadWrite),
        ]);
        let host = named("host.example");
        assert_eq!(rules.rights(&host, &["vm/secret", "other"]), Rights::None);
        assert_eq!(rules.rights(&host, &["vm/root"]), Rights::ReadOnly);
        assert_eq!(rules.rights(&host, &["else"]), Rights::ReadWrite);
    }

    #[test]
    fn a_certificate_can_not_pass_for_a_user_or_an_address() {
        let rules = rules(&[
            ("uid:0", "*", Rights::ReadWrite),
            ("ip:127.0.0.1", "*", Rights::ReadOnly),
        ]);
        for name in ["uid:0", "ip:127.0.0.1", "*", "0"] {
            assert_eq!(rules.rights(&named(name), &["a"]), Rights::None, "{name}");
        }
        let root = at(Peer::Unix { uid: 0 });
        assert_eq!(rules.rights(&root, &["a"]), Rights::ReadWrite);
        assert_eq!(
            rules.rights(&at(Peer::Unix { uid: 1 }), &["a"]),
            Rights::None
        );
        let mapped = at(Peer::Ip("::ffff:127.0.0.1".parse().unwrap()));
        assert_eq!(rules.rights(&mapped, &["a"]), Rights::ReadOnly);
    }

    #[test]
    fn networks_end_where_their_prefix_says() {
        let is = |network: &str, address: &str| {
            let who = Who::parse(&format!("ip:{network}")).unwrap();
            who.is(&at(Peer::Ip(address.parse().unwrap())))
        };
        assert!(is("192.0.2.128/25", "192.0.2.129"));
        assert!(!is("192.0.2.128/25", "192.0.2.127"));
        assert!(is("0.0.0.0/0", "203.0.113.9"));
        assert!(!is("0.0.0.0/0", "2001:db8::1"));
        assert!(is("2001:db8::/32", "2001:db8:ffff::1"));
        assert!(!is("2001:db8::/32", "2001:db9::1"));
        for wrong in [
            "",
            "uid:x",
            "uid:-1",
            "ip:1.2.3",
            "ip:1.2.3.4/33",
            "cid:",
            "ip:::/129",
        ] {
            assert!(Who::parse(wrong).is_err(), "{wrong}");
        }
    }
}
