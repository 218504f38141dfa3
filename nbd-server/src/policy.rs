//! What a server lets its clients do, as one value that can be replaced while it runs.

use crate::access::AccessRules;
use crate::rates::RateLimits;
use crate::tls::Tls;

/// Rules for all connections that begin while it is in place. The default lets everybody do everything, in the clear.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Who may attach what.
    pub access: AccessRules,
    /// TLS, if there is any.
    pub tls: Option<Tls>,
    /// The pace that exports are held to.
    pub rates: RateLimits,
}

impl Policy {
    /// Keys of the configuration whose meaning is another one in `new`, be it by what stands in the files that they name.
    pub fn differences(&self, new: &Self) -> Vec<&'static str> {
        let keys = [
            ("access", self.access == new.access),
            ("tls", self.tls == new.tls),
            ("rate_limit", self.rates == new.rates),
        ];
        let differing = keys.into_iter().filter(|(_, same)| !same);
        differing.map(|(key, _)| key).collect()
    }
}
