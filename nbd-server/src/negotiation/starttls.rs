//! NBD_OPT_STARTTLS and what depends on it (NBD protocol, "TLS support"): when the option is taken, what is refused before, and
//! what is forgotten after. TLS itself is the driver's.

use super::replies::{put_error, put_reply};
use super::{Negotiation, State, Step};
use crate::agreed::{Agreed, Headers};
use crate::protocol::{option, reply};

/// What a handshake makes of NBD_OPT_STARTTLS ("The use of TLS").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartTls {
    /// Refused: there is no TLS (NOTLS mode).
    Unavailable,
    /// The client may (OPTIONAL mode).
    Offered,
    /// Before it the client may do nothing (FORCEDTLS mode).
    Required,
    /// It has.
    Done,
}

impl Negotiation {
    /// "NBD_OPT_STARTTLS": what was negotiated before is forgotten, as it was not protected.
    pub(super) fn start_tls(&mut self, data: &[u8], out: &mut Vec<u8>) -> Option<Step> {
        let (kind, message) = match self.tls {
            _ if !data.is_empty() => (reply::ERR_INVALID, "this option has no data"),
            StartTls::Unavailable => (reply::ERR_POLICY, "this server has no TLS"),
            StartTls::Done => (reply::ERR_INVALID, "TLS has been started already"),
            StartTls::Offered | StartTls::Required => {
                put_reply(out, option::STARTTLS, reply::ACK, &[]);
                *self = Self {
                    state: State::Option,
                    no_zeroes: self.no_zeroes,
                    headers: Headers::default(),
                    selection: None,
                    stopping: self.stopping,
                    agreed: Agreed::default(),
                    tls: StartTls::Done,
                };
                return Some(Step::StartTls);
            }
        };
        put_error(out, option::STARTTLS, kind, message);
        None
    }
}
