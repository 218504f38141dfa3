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

/// Most metadata contexts with a point in time that one connection can select.
pub const MAX_CHANGED: usize = 4;

/// The number of a metadata context with a point in time among those that a connection has selected. Which point that is, and what the
/// context is called, is known to whoever found it for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u8);

impl Slot {
    /// All there are, in order.
    pub const ALL: [Self; MAX_CHANGED] = [Self(0), Self(1), Self(2), Self(3)];

    /// Counted from 0, below [`MAX_CHANGED`].
    pub fn index(self) -> usize {
        self.0.into()
    }
}

/// A metadata context that NBD_CMD_BLOCK_STATUS can be asked for ("Metadata querying").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaContext {
    /// What is allocated and what reads as zeros.
    Allocation,
    /// Bit 0: held in an epoch, not yet in the image.
    Held,
    /// Bit 0: changed since the point in time that the client has named for this one.
    Changed(Slot),
}

impl MetaContext {
    /// Those that every export has under the same name, in the order in which they are listed.
    pub const FIXED: [Self; 2] = [Self::Allocation, Self::Held];

    /// All of them, in the order in which they are answered.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        let changed = Slot::ALL.into_iter().map(Self::Changed);
        Self::FIXED.into_iter().chain(changed)
    }

    /// The name, with its namespace, of one that has always the same.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Allocation => Some("base:allocation"),
            Self::Held => Some("epochgate:held"),
            Self::Changed(_) => None,
        }
    }

    /// The id in replies.
    pub fn id(self) -> u32 {
        match self {
            Self::Allocation => 1,
            Self::Held => 2,
            Self::Changed(Slot(number)) => 3 + u32::from(number),
        }
    }

    /// The context with this id.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::all().find(|context| context.id() == id)
    }

    fn bit(self) -> u8 {
        match self {
            Self::Allocation => 1,
            Self::Held => 2,
            Self::Changed(Slot(number)) => 4 << number,
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

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// How many of them have a point in time.
    pub fn changed(self) -> usize {
        let fixed = MetaContext::FIXED;
        self.iter()
            .filter(|context| !fixed.contains(context))
            .count()
    }

    /// Those in the set, in the order of [`MetaContext::all`].
    pub fn iter(self) -> impl DoubleEndedIterator<Item = MetaContext> {
        MetaContext::all().filter(move |context| self.contains(*context))
    }
}

impl Extend<MetaContext> for Contexts {
    fn extend<I: IntoIterator<Item = MetaContext>>(&mut self, contexts: I) {
        for context in contexts {
            self.insert(context);
        }
    }
}

impl FromIterator<MetaContext> for Contexts {
    fn from_iter<I: IntoIterator<Item = MetaContext>>(contexts: I) -> Self {
        let mut set = Self::default();
        set.extend(contexts);
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
