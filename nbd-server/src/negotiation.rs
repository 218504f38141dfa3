//! The handshake of one connection (NBD protocol, "Fixed newstyle negotiation") as a state machine without I/O: bytes of the
//! client in, bytes for the client and questions about exports out. It knows no socket and no export, and holds at
//! most one option ([`MAX_OPTION_DATA`]), whatever length a client claims.
//!
//! ```text
//! greeting → ClientFlags → Option ⇄ (Skip | Answer) → Ended(attached | closed)
//! ```

mod contexts;
mod options;
mod replies;
mod starttls;

use crate::agreed::{Agreed, Contexts, Headers};
use crate::export::{ExportInfo, ExportListing, OpenRefused};
use crate::protocol::{self, WireReader, option, reply};
use options::{ContextData, InfoData};
use replies::{put_contexts, put_description, put_error, put_list, put_refusal, put_reply};
pub use starttls::StartTls;

/// The longest option data that is looked at: an INFO with the longest name and every information type that can be asked for fits.
/// What is longer is skipped and refused with NBD_REP_ERR_TOO_BIG.
pub const MAX_OPTION_DATA: usize = 16 << 10;

/// Why a handshake ended without an attachment, through a fault of the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// The client flags hold bits that were not offered, or lack fixed newstyle.
    #[error("the client answered the greeting with flags {0:#010x}, which were not offered")]
    ClientFlags(u32),
    /// An option did not begin with its magic number.
    #[error("the client sent {0:#018x} where an option has to begin")]
    OptionMagic(u64),
    /// NBD_OPT_EXPORT_NAME can be refused only by closing.
    #[error("the client asked by NBD_OPT_EXPORT_NAME for a name that is too long or not UTF-8")]
    ExportName,
    /// NBD_OPT_EXPORT_NAME while the server stops can be refused only by closing.
    #[error("the client asked by NBD_OPT_EXPORT_NAME for an export of a server that stops")]
    Stopping,
    /// After NBD_OPT_EXTENDED_HEADERS a client must use NBD_OPT_GO.
    #[error("the client used NBD_OPT_EXPORT_NAME after it had agreed on extended headers")]
    ExportNameExtended,
    /// NBD_OPT_EXPORT_NAME in the clear, where TLS is required, can be refused only by closing.
    #[error("the client asked for an export by NBD_OPT_EXPORT_NAME without TLS, which is required")]
    TlsRequired,
    /// Something came in the clear behind NBD_OPT_STARTTLS, before it was answered. It may be somebody else's, put in on the
    /// way: nothing of it may be taken for the client's word.
    #[error("the client sent more behind NBD_OPT_STARTTLS before TLS had started")]
    BytesBehindStartTls,
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send what stands in the output, then bring more bytes.
    NeedMore,
    /// Call [`Negotiation::answer_list`].
    List,
    /// Describe the export of this name, without attaching, and call [`Negotiation::answer_info`].
    Info(String),
    /// Ask the export, without attaching, which metadata contexts with a point in time it has, and call
    /// [`Negotiation::answer_contexts`].
    Contexts {
        /// Its name.
        export: String,
        /// What the client asks for.
        queries: Vec<String>,
        /// True: those that a query names in full are to be kept for the transmission, in the order of the queries. It ends all that was
        /// kept before. False: those that a query names in full or in part, or all if there is none, are to be listed.
        select: bool,
    },
    /// Attach to the export of this name and call [`Negotiation::answer_attach`].
    Attach(String),
    /// Send what stands in the output, do the TLS handshake, and go on over TLS.
    StartTls,
    /// Send what stands in the output and close: the client has said goodbye.
    Abort,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    ClientFlags,
    Option,
    /// Data of an option that is refused as too long; the bytes that are still to come.
    Skip {
        option: u32,
        remaining: u32,
    },
    /// A question was handed to the driver.
    Answer(Question),
    Ended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Question {
    List,
    /// INFO or GO.
    Describe {
        option: u32,
        data: InfoData,
    },
    /// LIST_META_CONTEXT.
    ListContexts(ContextData),
    /// SET_META_CONTEXT.
    SetContexts(ContextData),
    ExportName(String),
}

/// The last SET_META_CONTEXT: it counts for the export that it named.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selection {
    export: String,
    contexts: Contexts,
}

/// The state of one handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiation {
    state: State,
    no_zeroes: bool,
    headers: Headers,
    selection: Option<Selection>,
    stopping: bool,
    /// Settled by the attachment.
    agreed: Agreed,
    tls: StartTls,
}

impl Negotiation {
    /// Starts a handshake: the greeting is appended to `out`.
    pub fn start(tls: StartTls, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&protocol::NBD_MAGIC.to_be_bytes());
        out.extend_from_slice(&protocol::OPTION_MAGIC.to_be_bytes());
        let flags = protocol::FIXED_NEWSTYLE | protocol::NO_ZEROES;
        out.extend_from_slice(&flags.to_be_bytes());
        Self {
            state: State::ClientFlags,
            no_zeroes: false,
            headers: Headers::default(),
            selection: None,
            stopping: false,
            agreed: Agreed::default(),
            tls,
        }
    }

    /// The server stops: from now on every option but NBD_OPT_ABORT is refused with NBD_REP_ERR_SHUTDOWN ("Termination of the session
    /// during option haggling").
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// What holds for the transmission, after an attachment.
    pub fn agreed(&self) -> Agreed {
        self.agreed
    }

    /// What would hold for the transmission with the export of this name.
    fn agreed_for(&self, export: &str) -> Agreed {
        let selection = self.selection.as_ref();
        let selection = selection.filter(|selection| selection.export == export);
        Agreed {
            headers: self.headers,
            contexts: selection.map_or_else(Contexts::default, |selection| selection.contexts),
        }
    }

    /// Takes bytes off the front of `input` until something has to be done. What is left in `input` stays for the next call; after an
    /// attachment it is the beginning of the transmission. Replies are appended to `out`.
    ///
    /// # Errors
    /// When the client breaks the protocol in a way that has no answer: close the connection.
    pub fn advance(
        &mut self,
        input: &mut &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Step, NegotiationError> {
        loop {
            match &mut self.state {
                State::ClientFlags => {
                    let mut reader = WireReader(input);
                    let Some(flags) = reader.u32() else {
                        return Ok(Step::NeedMore);
                    };
                    *input = reader.0;
                    self.client_flags(flags)?;
                }
                State::Skip { option, remaining } => {
                    let available = u32::try_from(input.len()).unwrap_or(u32::MAX);
                    let taken = available.min(*remaining);
                    *remaining -= taken;
                    *input = input.get(taken as usize..).unwrap_or_default();
                    if *remaining > 0 {
                        return Ok(Step::NeedMore);
                    }
                    let message = format!("option data may be {MAX_OPTION_DATA} bytes at most");
                    put_error(out, *option, reply::ERR_TOO_BIG, &message);
                    self.state = State::Option;
                }
                State::Option => {
                    let mut reader = WireReader(input);
                    let Some(magic) = reader.u64() else {
                        return Ok(Step::NeedMore);
                    };
                    if magic != protocol::OPTION_MAGIC {
                        return Err(NegotiationError::OptionMagic(magic));
                    }
                    let (Some(option), Some(length)) = (reader.u32(), reader.u32()) else {
                        return Ok(Step::NeedMore);
                    };
                    if length as usize > MAX_OPTION_DATA {
                        if option == option::EXPORT_NAME {
                            return Err(NegotiationError::ExportName);
                        }
                        *input = reader.0;
                        self.state = State::Skip {
                            option,
                            remaining: length,
                        };
                        continue;
                    }
                    let Some(data) = reader.bytes(length as usize) else {
                        return Ok(Step::NeedMore);
                    };
                    *input = reader.0;
                    if let Some(step) = self.option(option, data, out)? {
                        if step == Step::StartTls && !input.is_empty() {
                            return Err(NegotiationError::BytesBehindStartTls);
                        }
                        return Ok(step);
                    }
                }
                // The driver has not answered yet, or goes on after the end: nothing moves.
                State::Answer(_) | State::Ended => return Ok(Step::NeedMore),
            }
        }
    }

    fn client_flags(&mut self, flags: u32) -> Result<(), NegotiationError> {
        let known = protocol::C_FIXED_NEWSTYLE | protocol::C_NO_ZEROES;
        if flags & !known != 0 || flags & protocol::C_FIXED_NEWSTYLE == 0 {
            return Err(NegotiationError::ClientFlags(flags));
        }
        self.no_zeroes = flags & protocol::C_NO_ZEROES != 0;
        self.state = State::Option;
        Ok(())
    }

    fn option(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Step>, NegotiationError> {
        if self.stopping && option != option::ABORT {
            if option == option::EXPORT_NAME {
                return Err(NegotiationError::Stopping);
            }
            let refused = OpenRefused::Shutdown;
            put_refusal(out, option, &refused);
            return Ok(None);
        }
        if self.tls == StartTls::Required && !matches!(option, option::STARTTLS | option::ABORT) {
            if option == option::EXPORT_NAME {
                return Err(NegotiationError::TlsRequired);
            }
            let message = "this server requires TLS; start it with NBD_OPT_STARTTLS";
            put_error(out, option, reply::ERR_TLS_REQD, message);
            return Ok(None);
        }
        match option {
            option::STARTTLS => Ok(self.start_tls(data, out)),
            option::EXPORT_NAME => {
                if self.headers == Headers::Extended {
                    return Err(NegotiationError::ExportNameExtended);
                }
                let name = options::name(data).ok_or(NegotiationError::ExportName)?;
                self.state = State::Answer(Question::ExportName(name.clone()));
                Ok(Some(Step::Attach(name)))
            }
            option::ABORT => {
                put_reply(out, option, reply::ACK, &[]);
                self.state = State::Ended;
                Ok(Some(Step::Abort))
            }
            option::LIST if data.is_empty() => {
                self.state = State::Answer(Question::List);
                Ok(Some(Step::List))
            }
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS if data.is_empty() => {
                self.headers(option, out);
                Ok(None)
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                put_error(out, option, reply::ERR_INVALID, "this option has no data");
                Ok(None)
            }
            option::INFO | option::GO => Ok(self.describe(option, data, out)),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                Ok(self.contexts(option, data, out))
            }
            _ => {
                put_error(
                    out,
                    option,
                    reply::ERR_UNSUP,
                    "this server does not know the option",
                );
                Ok(None)
            }
        }
    }

    /// STRUCTURED_REPLY or EXTENDED_HEADERS; the second "takes precedence" and has no way back.
    fn headers(&mut self, option: u32, out: &mut Vec<u8>) {
        if option == option::EXTENDED_HEADERS {
            self.headers = Headers::Extended;
        } else if self.headers == Headers::Extended {
            let message = "extended headers are agreed on already";
            put_error(out, option, reply::ERR_EXT_HEADER_REQD, message);
            return;
        } else {
            self.headers = Headers::Structured;
        }
        put_reply(out, option, reply::ACK, &[]);
    }

    fn describe(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Option<Step> {
        let Some(data) = options::info(data) else {
            let message = "the data is not a name of at most 4096 bytes of UTF-8 and a list of information types";
            put_error(out, option, reply::ERR_INVALID, message);
            return None;
        };
        let name = data.name.clone();
        self.state = State::Answer(Question::Describe { option, data });
        Some(if option == option::GO {
            Step::Attach(name)
        } else {
            Step::Info(name)
        })
    }

    fn contexts(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) -> Option<Step> {
        if option == option::SET_META_CONTEXT {
            // "replaces all previously-set metadata contexts (including when this command fails)"
            self.selection = None;
        }
        if !self.headers.chunked() {
            let message = "metadata contexts need structured replies or extended headers first";
            put_error(out, option, reply::ERR_INVALID, message);
            return None;
        }
        let Some(data) = options::contexts(data) else {
            let message =
                "the data is not a name and a list of queries, each of at most 4096 bytes of UTF-8";
            put_error(out, option, reply::ERR_INVALID, message);
            return None;
        };
        let export = data.name.clone();
        let select = option == option::SET_META_CONTEXT;
        let (queries, question) = if select {
            let asked = contexts::of_export(&data.queries);
            (asked, Question::SetContexts(data))
        } else {
            (data.queries.clone(), Question::ListContexts(data))
        };
        self.state = State::Answer(question);
        Some(Step::Contexts {
            export,
            queries,
            select,
        })
    }

    /// Answers [`Step::List`].
    pub fn answer_list(&mut self, exports: &[ExportListing], out: &mut Vec<u8>) {
        if self.state == State::Answer(Question::List) {
            put_list(out, exports);
            self.state = State::Option;
        }
    }

    /// Answers [`Step::Info`]; the handshake goes on.
    pub fn answer_info(&mut self, export: Result<&ExportInfo, &OpenRefused>, out: &mut Vec<u8>) {
        match (std::mem::replace(&mut self.state, State::Option), export) {
            (State::Answer(Question::Describe { option, data }), Ok(info)) => {
                let agreed = self.agreed_for(&data.name);
                put_description(out, option, &data.name, &data.wanted, info, &agreed);
            }
            (State::Answer(Question::Describe { option, .. }), Err(refused)) => {
                put_refusal(out, option, refused);
            }
            // Not what was asked.
            (state, _) => self.state = state,
        }
    }

    /// Answers [`Step::Contexts`] with the names of what was found; the handshake goes on. Of what is selected the first
    /// [`MAX_CHANGED`](crate::agreed::MAX_CHANGED) get their [slots](crate::agreed::Slot) in this order.
    pub fn answer_contexts(&mut self, found: Result<&[String], &OpenRefused>, out: &mut Vec<u8>) {
        match (std::mem::replace(&mut self.state, State::Option), found) {
            (State::Answer(Question::ListContexts(data)), Ok(found)) => {
                // "reserved and SHOULD be set to zero": nothing is selected.
                let fixed = contexts::listed(&data.queries);
                let names = fixed.into_iter().chain(found.iter().map(String::as_str));
                put_contexts(out, option::LIST_META_CONTEXT, names.map(|name| (0, name)));
            }
            (State::Answer(Question::SetContexts(data)), Ok(found)) => {
                let mut contexts = contexts::selected(&data.queries);
                let fixed = contexts.iter();
                let fixed = fixed.filter_map(|context| Some((context, context.name()?)));
                let all: Vec<_> = fixed.chain(contexts::placed(found)).collect();
                contexts.extend(all.iter().map(|(context, _)| *context));
                self.selection = Some(Selection {
                    export: data.name,
                    contexts,
                });
                let named = all.iter().map(|(context, name)| (context.id(), *name));
                put_contexts(out, option::SET_META_CONTEXT, named);
            }
            (State::Answer(Question::ListContexts(_)), Err(refused)) => {
                put_refusal(out, option::LIST_META_CONTEXT, refused);
            }
            (State::Answer(Question::SetContexts(_)), Err(refused)) => {
                put_refusal(out, option::SET_META_CONTEXT, refused);
            }
            // Not what was asked.
            (state, _) => self.state = state,
        }
    }

    /// Answers [`Step::Attach`]. True: the transmission begins once the output is sent. False: refused; after
    /// NBD_OPT_EXPORT_NAME, which has no other way to say so, [`Negotiation::advance`] is of no more use and the connection has to be
    /// closed ([`Negotiation::ended`]).
    pub fn answer_attach(
        &mut self,
        export: Result<&ExportInfo, &OpenRefused>,
        out: &mut Vec<u8>,
    ) -> bool {
        match (std::mem::replace(&mut self.state, State::Ended), export) {
            (State::Answer(Question::Describe { option, data }), Ok(info)) => {
                self.agreed = self.agreed_for(&data.name);
                put_description(out, option, &data.name, &data.wanted, info, &self.agreed);
                true
            }
            (State::Answer(Question::Describe { option, .. }), Err(refused)) => {
                put_refusal(out, option, refused);
                self.state = State::Option;
                false
            }
            (State::Answer(Question::ExportName(name)), Ok(info)) => {
                self.agreed = self.agreed_for(&name);
                out.extend_from_slice(&info.size.to_be_bytes());
                let flags = protocol::transmission_flags(info, &self.agreed);
                out.extend_from_slice(&flags.to_be_bytes());
                if !self.no_zeroes {
                    out.extend_from_slice(&[0; protocol::EXPORT_NAME_PADDING]);
                }
                true
            }
            (State::Answer(Question::ExportName(_)), Err(_)) => false,
            // Not what was asked.
            (state, _) => {
                self.state = state;
                false
            }
        }
    }

    /// True when no further option is taken.
    pub fn ended(&self) -> bool {
        self.state == State::Ended
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod starttls_tests;
