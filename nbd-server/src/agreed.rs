//! What a handshake settles for the transmission: the form of requests and replies, and the metadata contexts that the client may query.
//! Values only; how they are agreed on is the matter of [`crate::negotiation`].

use crate::protocol;

/// The form of requests and replies (NBD protocol, "Transmission").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Headers {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies (NBD_OPT_STRUCTURED_REPLY).
    Structured,
    /// Extended requests and replies with 64-bit lengths (NBD_OPT_EXTENDED_HEADERS, of the document's extension of that name).
    Extended,
}

impl Headers {
    /// True when a reply may consist of several chunks.
    pub fn chunked(self) -> bool {
        self != Self::Simple
    }

    /// Bytes of a request without its payload.
    pub fn request_len(self) -> usize {
        match self {
            Self::Simple | Self::Structured => protocol::REQUEST_LEN,
            Self::Extended => protocol::EXTENDED_REQUEST_LEN,
        }
    }
}

/// A metadata context that NBD_CMD_BLOCK_STATUS can be asked for ("Metadata querying").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaContext {
    /// What is allocated and what reads as zeros.
    Allocation,
    /// Bit 0: held in an epoch, not yet in the image.
    Held,
}

impl MetaContext {
    /// All of them, in the order in which they are listed.
    pub const ALL: [Self; 2] = [Self::Allocation, Self::Held];

    /// The name, with its namespace.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::Held => "epochgate:held",
        }
    }

    /// The id in replies.
    pub fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Held => 2,
        }
    }

    /// The context with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|context| context.id() == id)
    }

    fn bit(self) -> u8 {
        match self {
            Self::Allocation => 1,
            Self::Held => 2,
        }
    }
}

/// A set of metadata contexts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts(u8);

impl Contexts {
    /// Adds one; false if it was there already.
    pub fn insert(&mut self, context: MetaContext) -> bool {
        let new = !self.contains(context);
        self.0 |= context.bit();
        new
    }

    /// True when `context` is in the set.
    pub fn contains(self, context: MetaContext) -> bool {
        self.0 & context.bit() != 0
    }

    /// True when there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in the set, in the order of [`MetaContext::ALL`].
    pub fn iter(self) -> impl DoubleEndedIterator<Item = MetaContext> {
        MetaContext::ALL
            .into_iter()
            .filter(move |context| self.contains(*context))
    }
}

impl FromIterator<MetaContext> for Contexts {
    fn from_iter<I: IntoIterator<Item = MetaContext>>(contexts: I) -> Self {
        let mut set = Self::default();
        for context in contexts {
            set.insert(context);
        }
        set
    }
}

/// What was agreed on for one attachment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Agreed {
    /// The form of requests and replies.
    pub headers: Headers,
    /// What BLOCK_STATUS answers; empty unless the client has selected contexts for this very export.
    pub contexts: Contexts,
}

impl Agreed {
    /// These headers and no metadata context.
    pub fn headers(headers: Headers) -> Self {
        Self {
            headers,
            contexts: Contexts::default(),
        }
    }
}
