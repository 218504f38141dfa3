//! The handshake: whatever a client sends, cut wherever it may be, the state machine neither panics nor holds more than it says, its
//! answers do not depend on the cuts, and each option gets the replies that the NBD protocol document allows for it.
//!
//! Input: a byte that chooses what the exports are like, one that chooses the cuts, then the client's bytes.

use nbd_server::export::{ExportInfo, ExportListing, OpenRefused};
use nbd_server::negotiation::{MAX_OPTION_DATA, Negotiation, NegotiationError, StartTls, Step};

/// Bytes of an option without its data.
const OPTION_HEADER: usize = 16;
const OPTION_MAGIC: &[u8] = b"IHAVEOPT";
const EXPORT_NAME: u32 = 1;
const ACK: u32 = 1;

/// How a handshake went.
#[derive(Debug, PartialEq, Eq)]
struct Course {
    /// All that was answered.
    out: Vec<u8>,
    /// The client's bytes that were taken.
    taken: usize,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The client's bytes were not enough.
    Open,
    Attached,
    /// Closed by the state machine, or handed over to what comes next.
    Closed,
    Fault(NegotiationError),
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((&[plan, cut], stream)) = data.split_first_chunk::<2>() else {
        return;
    };
    let whole = drive(plan, &[stream]);
    let pieces: Vec<&[u8]> = pieces(stream, cut);
    let in_pieces = drive(plan, &pieces);
    assert_eq!(whole, in_pieces, "the cuts make a difference");
    check(stream, &whole);
}

/// Cuts of 1 to `cut` + 1 bytes; a long stream in longer ones, not to be all day at it.
fn pieces(mut stream: &[u8], cut: u8) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut state = usize::from(cut);
    let unit = 1 + stream.len() / 1024;
    while !stream.is_empty() {
        state = state.wrapping_mul(31).wrapping_add(17);
        let len = unit * (1 + state % (usize::from(cut) + 1));
        let len = len.min(stream.len());
        let (piece, rest) = stream.split_at(len);
        pieces.push(piece);
        stream = rest;
    }
    pieces
}

fn export(plan: u8) -> ExportInfo {
    let bit = |bit: u8| plan & 1 << bit != 0;
    ExportInfo {
        read_only: bit(0),
        can_flush: !bit(1),
        can_trim: !bit(2),
        can_zeroes: !bit(3),
        description: "x".repeat(if bit(4) { 5000 } else { 3 }),
        ..ExportInfo::full(1 << 30)
    }
}

fn tls(plan: u8) -> StartTls {
    match plan >> 5 & 3 {
        2 => StartTls::Offered,
        3 => StartTls::Required,
        _ => StartTls::Unavailable,
    }
}

fn find(plan: u8, name: &str) -> Result<ExportInfo, OpenRefused> {
    match name {
        "" | "disk" => Ok(export(plan)),
        "forbidden" => Err(OpenRefused::Policy("not for you".repeat(1000))),
        "late" => Err(OpenRefused::Shutdown),
        _ => Err(OpenRefused::Unknown(format!("there is no export {name}"))),
    }
}

/// The contexts that an export has beside those that all have: any about a point in time. They may be more than there are places for.
fn known(plan: u8, queries: &[String], select: bool) -> Vec<String> {
    let about = |query: &&String| query.contains("since:") || query.contains("bitmap:");
    let mut found: Vec<String> = queries.iter().filter(about).cloned().collect();
    if !select && plan & 1 == 1 {
        found.extend((0..9).map(|pin| format!("qemu:dirty-bitmap:{pin}")));
    }
    found
}

/// Drives the state machine as a connection does.
fn drive(plan: u8, pieces: &[&[u8]]) -> Course {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::start(tls(plan), &mut out);
    let mut held = Vec::new();
    let mut taken = 0;
    let mut end = End::Open;
    'pieces: for piece in pieces {
        held.extend_from_slice(piece);
        loop {
            let mut input = &held[..];
            let step = negotiation.advance(&mut input, &mut out);
            let consumed = held.len() - input.len();
            held.drain(..consumed);
            taken += consumed;
            match step {
                // It may be seen or not, as the cut is: the client's bytes end with STARTTLS either way.
                Err(NegotiationError::BytesBehindStartTls) => {
                    end = End::Closed;
                    break 'pieces;
                }
                Err(error) => {
                    end = End::Fault(error);
                    break 'pieces;
                }
                Ok(Step::NeedMore) => {
                    assert!(
                        held.len() < OPTION_HEADER + MAX_OPTION_DATA,
                        "it holds {} bytes",
                        held.len()
                    );
                    break;
                }
                Ok(Step::List) => {
                    let listing = |name: &str| ExportListing {
                        name: name.to_owned(),
                        description: export(plan).description,
                    };
                    negotiation.answer_list(&[listing("disk"), listing("")], &mut out);
                }
                Ok(Step::Info(name)) => {
                    negotiation.answer_info(find(plan, &name).as_ref(), &mut out);
                }
                Ok(Step::Contexts {
                    export,
                    queries,
                    select,
                }) => {
                    let found = find(plan, &export).map(|_| known(plan, &queries, select));
                    let names: Result<&Vec<String>, _> = found.as_ref();
                    negotiation.answer_contexts(names.map(Vec::as_slice), &mut out);
                }
                Ok(Step::Attach(name)) => {
                    if negotiation.answer_attach(find(plan, &name).as_ref(), &mut out) {
                        end = End::Attached;
                        break 'pieces;
                    }
                }
                // The client has said goodbye, or what comes next is not spoken by this state machine.
                Ok(_) => {
                    end = End::Closed;
                    break 'pieces;
                }
            }
            if negotiation.ended() {
                end = End::Closed;
                break 'pieces;
            }
        }
    }
    Course { out, taken, end }
}

/// The options in the client's bytes that are whole.
fn options(mut stream: &[u8]) -> Vec<u32> {
    let mut options = Vec::new();
    while let Some((head, rest)) = stream.split_first_chunk::<OPTION_HEADER>() {
        if &head[..8] != OPTION_MAGIC {
            break;
        }
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        let Some(rest) = rest.get(number(12) as usize..) else {
            break;
        };
        options.push(number(8));
        stream = rest;
    }
    options
}

/// Holds the answers against the client's bytes, read a second time.
fn check(stream: &[u8], course: &Course) {
    let (greeting, mut out) = course.out.split_at(18);
    assert_eq!(greeting, b"NBDMAGICIHAVEOPT\x00\x03");
    let Some((flags, rest)) = stream.split_first_chunk::<4>() else {
        assert!(course.end == End::Open && out.is_empty());
        return;
    };
    let flags = u32::from_be_bytes(*flags);
    if flags & !3 != 0 || flags & 1 == 0 {
        assert!(course.end == End::Fault(NegotiationError::ClientFlags(flags)));
        assert!(out.is_empty());
        return;
    }
    let asked = options(rest);
    let mut answered = 0;
    for option in &asked {
        if *option == EXPORT_NAME {
            // No option reply: size, flags and perhaps padding, or nothing at all.
            let padding = if flags & 2 == 0 { 124 } else { 0 };
            let expected = if course.end == End::Attached {
                10 + padding
            } else {
                0
            };
            assert_eq!(out.len(), expected, "after EXPORT_NAME");
            assert_ne!(course.end, End::Open);
            return;
        }
        if out.is_empty() {
            // It has ended before this one.
            break;
        }
        answered += 1;
        let last = check_replies(*option, &mut out);
        let ends = matches!(option, 2 | 7) && last == ACK;
        if ends {
            assert!(out.is_empty(), "an answer after the end");
            let attached = course.end == End::Attached;
            assert!(attached == (*option == 7) && course.end != End::Open);
            return;
        }
    }
    assert!(out.is_empty(), "an answer to no option");
    if course.end == End::Open {
        assert_eq!(answered, asked.len(), "an option without an answer");
    }
    assert!(course.taken <= stream.len());
}

/// Takes the replies to one option off `out`; returns the last one's type.
fn check_replies(option: u32, out: &mut &[u8]) -> u32 {
    let mut described = false;
    let mut last_id = 0;
    loop {
        let (head, rest) = out.split_first_chunk::<20>().expect("a whole reply");
        let number = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        assert_eq!(&head[..8], &0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(number(8), option, "a reply to another option");
        let (kind, len) = (number(12), number(16) as usize);
        assert!(len <= 2 * 4096 + 4, "a reply of {len} bytes");
        let (data, rest) = rest.split_at(len);
        *out = rest;
        match (kind, option) {
            (ACK, _) => {
                assert!(data.is_empty(), "an ACK with data");
                assert!(
                    described == matches!(option, 6 | 7),
                    "an export that is not described"
                );
                return kind;
            }
            (2, 3) => assert!(len >= 4),
            (4, 9 | 10) => {
                let id = u32::from_be_bytes(data[..4].try_into().unwrap());
                // Selected ones have ids, each another; what is only listed has none.
                assert!(if option == 9 { id == 0 } else { id > last_id });
                last_id = id;
            }
            (3, 6 | 7) => described |= data[..2] == [0, 0] && len == 12,
            _ if kind >> 31 == 1 => {
                assert!(std::str::from_utf8(data).is_ok_and(|text| text.len() <= 4096));
                return kind;
            }
            _ => panic!("a reply of type {kind} to option {option}"),
        }
    }
}
