//! The handshake of one connection (NBD protocol, "Fixed newstyle negotiation") as a state machine without I/O: bytes of the
//! client in, bytes for the client and questions about exports out. It knows no socket and no export, and holds at
//! most one option ([`MAX_OPTION_DATA`]), whatever length a client claims.
//!
//! ```text
//! greeting → ClientFlags → Option ⇄ (Skip | Answer) → Ended(attached | closed)
//! ```

use crate::export::{ExportInfo, ExportListing, OpenRefused};
use crate::protocol::{self, WireReader, info, option, reply};

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
}

/// What the driver does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send what stands in the output, then bring more bytes.
    NeedMore,
    /// Call [`Negotiation::answer_list`].
    List,
    /// Describe the export of this name and call [`Negotiation::answer_info`].
    Info(String),
    /// Attach to the export of this name and call [`Negotiation::answer_attach`].
    Attach(String),
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
        name: String,
        wanted: Vec<u16>,
    },
    ExportName,
}

/// The state of one handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Negotiation {
    state: State,
    no_zeroes: bool,
    structured: bool,
}

impl Negotiation {
    /// Starts a handshake: the greeting is appended to `out`.
    pub fn start(out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&protocol::NBD_MAGIC.to_be_bytes());
        out.extend_from_slice(&protocol::OPTION_MAGIC.to_be_bytes());
        let flags = protocol::FIXED_NEWSTYLE | protocol::NO_ZEROES;
        out.extend_from_slice(&flags.to_be_bytes());
        Self {
            state: State::ClientFlags,
            no_zeroes: false,
            structured: false,
        }
    }

    /// True when the client asked for structured replies.
    pub fn structured(&self) -> bool {
        self.structured
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
        match option {
            option::EXPORT_NAME => {
                let name = parse_name(data).ok_or(NegotiationError::ExportName)?;
                self.state = State::Answer(Question::ExportName);
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
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                put_reply(out, option, reply::ACK, &[]);
                Ok(None)
            }
            option::LIST | option::STRUCTURED_REPLY => {
                put_error(out, option, reply::ERR_INVALID, "this option has no data");
                Ok(None)
            }
            option::INFO | option::GO => {
                let Some((name, wanted)) = parse_info(data) else {
                    let message = "the data is not a name of at most 4096 bytes of UTF-8 and a list of information types";
                    put_error(out, option, reply::ERR_INVALID, message);
                    return Ok(None);
                };
                let step = if option == option::GO {
                    Step::Attach(name.clone())
                } else {
                    Step::Info(name.clone())
                };
                self.state = State::Answer(Question::Describe {
                    option,
                    name,
                    wanted,
                });
                Ok(Some(step))
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

    /// Answers [`Step::List`].
    pub fn answer_list(&mut self, exports: &[ExportListing], out: &mut Vec<u8>) {
        if self.state != State::Answer(Question::List) {
            return;
        }
        for export in exports {
            let name = cut_string(&export.name);
            let mut data = Vec::with_capacity(4 + name.len() + export.description.len());
            data.extend_from_slice(&length_u32(name.len()).to_be_bytes());
            data.extend_from_slice(name.as_bytes());
            data.extend_from_slice(cut_string(&export.description).as_bytes());
            put_reply(out, option::LIST, reply::SERVER, &data);
        }
        put_reply(out, option::LIST, reply::ACK, &[]);
        self.state = State::Option;
    }

    /// Answers [`Step::Info`]; the handshake goes on.
    pub fn answer_info(&mut self, export: Result<&ExportInfo, &OpenRefused>, out: &mut Vec<u8>) {
        if let State::Answer(Question::Describe {
            option,
            name,
            wanted,
        }) = &self.state
        {
            put_description(out, *option, name, wanted, export, self.structured);
            self.state = State::Option;
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
        match (&self.state, export) {
            (
                State::Answer(Question::Describe {
                    option,
                    name,
                    wanted,
                }),
                export,
            ) => {
                put_description(out, *option, name, wanted, export, self.structured);
                self.state = if export.is_ok() {
                    State::Ended
                } else {
                    State::Option
                };
            }
            (State::Answer(Question::ExportName), export) => {
                if let Ok(info) = export {
                    out.extend_from_slice(&info.size.to_be_bytes());
                    let flags = protocol::transmission_flags(info, self.structured);
                    out.extend_from_slice(&flags.to_be_bytes());
                    if !self.no_zeroes {
                        out.extend_from_slice(&[0; protocol::EXPORT_NAME_PADDING]);
                    }
                }
                self.state = State::Ended;
            }
            _ => return false,
        }
        export.is_ok()
    }

    /// True when no further option is taken.
    pub fn ended(&self) -> bool {
        self.state == State::Ended
    }
}

fn parse_name(data: &[u8]) -> Option<String> {
    if data.len() > protocol::MAX_STRING {
        return None;
    }
    std::str::from_utf8(data).ok().map(str::to_owned)
}

/// "NBD_OPT_INFO and NBD_OPT_GO": length and bytes of the name, count and list of the information types.
fn parse_info(data: &[u8]) -> Option<(String, Vec<u16>)> {
    let mut reader = WireReader(data);
    let length = reader.u32()?;
    let name = parse_name(reader.bytes(length as usize)?)?;
    let count = reader.u16()?;
    if reader.0.len() != usize::from(count) * 2 {
        return None;
    }
    let wanted = std::iter::from_fn(|| reader.u16()).collect();
    Some((name, wanted))
}

fn put_description(
    out: &mut Vec<u8>,
    option: u32,
    name: &str,
    wanted: &[u16],
    export: Result<&ExportInfo, &OpenRefused>,
    structured: bool,
) {
    let export = match export {
        Ok(export) => export,
        Err(refused) => {
            let kind = match refused {
                OpenRefused::Unknown(_) => reply::ERR_UNKNOWN,
                OpenRefused::Policy(_) => reply::ERR_POLICY,
                OpenRefused::Shutdown => reply::ERR_SHUTDOWN,
            };
            put_error(out, option, kind, &refused.to_string());
            return;
        }
    };
    let mut data = Vec::with_capacity(14);
    data.extend_from_slice(&info::EXPORT.to_be_bytes());
    data.extend_from_slice(&export.size.to_be_bytes());
    data.extend_from_slice(&protocol::transmission_flags(export, structured).to_be_bytes());
    put_reply(out, option, reply::INFO, &data);

    // "The server MAY ignore [..] and MAY send [..] not requested": the block sizes cost little and clients without them guess.
    data.clear();
    data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
    for size in [
        protocol::MIN_BLOCK,
        protocol::PREFERRED_BLOCK,
        protocol::MAX_PAYLOAD,
    ] {
        data.extend_from_slice(&size.to_be_bytes());
    }
    put_reply(out, option, reply::INFO, &data);

    for (kind, text) in [
        (info::NAME, name),
        (info::DESCRIPTION, export.description.as_str()),
    ] {
        if wanted.contains(&kind) {
            data.clear();
            data.extend_from_slice(&kind.to_be_bytes());
            data.extend_from_slice(cut_string(text).as_bytes());
            put_reply(out, option, reply::INFO, &data);
        }
    }
    put_reply(out, option, reply::ACK, &[]);
}

fn put_error(out: &mut Vec<u8>, option: u32, kind: u32, message: &str) {
    put_reply(out, option, kind, cut_string(message).as_bytes());
}

fn put_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.reserve(protocol::OPTION_REPLY_HEADER_LEN + data.len());
    out.extend_from_slice(&protocol::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&length_u32(data.len()).to_be_bytes());
    out.extend_from_slice(data);
}

/// Lengths here come from strings of at most [`protocol::MAX_STRING`] bytes.
fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Cuts a string to what the protocol allows, at the border of a character.
fn cut_string(text: &str) -> &str {
    let mut end = text.len().min(protocol::MAX_STRING);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
#[path = "negotiation_tests.rs"]
mod tests;
