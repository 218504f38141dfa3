//! Reads the head of a migration stream: all that comes before the first device. Pure, for bytes of any origin: it never
//! panics, and what it does not know is an error and not a guess.
//!
//! A stream that QEMU writes to `migrate` with `x-ignore-shared`, all numbers big-endian, `name` a length byte and so
//! many characters:
//!
//! ```text
//! ├ "QEVM" ┼ version u32 = 3 ┤
//! ├ 07 CONFIGURATION ┼ length u32, machine type ┤
//! ├ 05 SUBSECTION ┼ name "configuration/capabilities" ┼ version u32 ┼ count u32, count × name ┤
//! ├ 01 START ┼ section u32 ┼ name "ram" ┼ instance u32 = 0 ┼ version u32 = 4 ┼ records ┼ 7e, section u32 ┤
//! ├ 02 PART ┼ section u32 ┼ records ┼ 7e, section u32 ┤                                        any number of them
//! ├ 08 COMMAND ┼ kind u16 ┼ length u16, argument ┤                                            QEMU 10: "switchover"
//! ├ 03 END ┼ section u32 ┼ records ┼ 7e, section u32 ┤
//! ├ 04 FULL ┼ the first device ...                                                         ← here the head ends
//! ```
//!
//! A record of the RAM section begins with a u64: flags in its lower 12 bits, an address or a size above.
//!
//! ```text
//! ├ size of all blocks | 004 ┼ so many × (name, length u64, guest address u64) ┤     the list of RAM blocks
//! ├ offset | 008 (| 020) ┼ name, unless 020 ┼ 4096 bytes ┤                           a page; 020: of the block before
//! ├ offset | 002 (| 020) ┼ name, unless 020 ┼ 00 ┤                                   a page of zeros
//! ├ 010 ┤                                                                            end of the section's records
//! ```
//!
//! Where one RAM section ends and the next begins says nothing: QEMU ends one when it has taken long, on a busy host after any page. The block
//! before is then one of the section before.

use std::collections::BTreeMap;

use crate::page_set::{PAGE, PAGE_SIZE};

/// Magic and version, at the head of every stream.
pub(crate) const PREAMBLE: &[u8; 8] = b"QEVM\0\0\0\x03";

/// A head beyond this is refused. The ROMs of a PC are below 1 MiB, each network card brings 256 KiB more.
const HEAD_LIMIT: usize = 16 << 20;

/// RAM blocks beyond this are refused: a PC has about six, and one more for each device with a ROM.
const BLOCK_LIMIT: usize = 256;

/// Capabilities beyond this are refused: QEMU knows about 25 in all.
const CAPABILITY_LIMIT: u32 = 64;

/// The one capability with which the list of blocks has an address per block.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// First bytes of sections.
pub(in crate::device_state) mod section {
    pub(in crate::device_state) const EOF: u8 = 0;
    pub(super) const START: u8 = 1;
    pub(super) const PART: u8 = 2;
    pub(super) const END: u8 = 3;
    pub(in crate::device_state) const FULL: u8 = 4;
    pub(super) const SUBSECTION: u8 = 5;
    pub(super) const CONFIGURATION: u8 = 7;
    pub(super) const COMMAND: u8 = 8;
    pub(in crate::device_state) const FOOTER: u8 = 0x7E;
}

/// Tells a QEMU 10 that the source has stopped; without an argument.
const COMMAND_SWITCHOVER_START: u16 = 11;

/// Flags of a RAM record.
mod ram {
    pub(super) const ZERO: u64 = 0x002;
    pub(super) const LIST: u64 = 0x004;
    pub(super) const PAGE: u64 = 0x008;
    pub(super) const END: u64 = 0x010;
    pub(super) const CONTINUE: u64 = 0x020;
    pub(super) const MASK: u64 = 0xFFF;
}

/// Why a stream was not understood. Offsets are in bytes from its beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// There is less of it than it says.
    #[error("it ends in the middle, at {at}")]
    Truncated {
        /// Where what is missing would begin.
        at: usize,
    },
    /// It goes on for longer than any head does.
    #[error("its head is longer than {} MiB", HEAD_LIMIT >> 20)]
    TooLong,
    /// Not a stream, or one of another version.
    #[error("it does not begin as a stream of version 3 does")]
    Preamble,
    /// Nothing that begins a section.
    #[error("an unknown section of type {kind} at {at}")]
    Section {
        /// Its first byte.
        kind: u8,
        /// Where it begins.
        at: usize,
    },
    /// A name that is not known where it stands.
    #[error("an unknown {what} \"{name}\"")]
    Name {
        /// What it would be the name of.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name that is not UTF-8.
    #[error("a name at {at} is not plain text")]
    NotText {
        /// Where it begins.
        at: usize,
    },
    /// A command that may mean anything.
    #[error("an unknown command {kind} with {length} bytes at {at}")]
    Command {
        /// Its number.
        kind: u16,
        /// Length of its argument in bytes.
        length: u16,
        /// Where it begins.
        at: usize,
    },
    /// A stream that was made in another way.
    #[error("capabilities {found:?} instead of x-ignore-shared alone")]
    Capabilities {
        /// What it was made with.
        found: Vec<String>,
    },
    /// A section of another version.
    #[error("an unknown version {version} of section \"{name}\"")]
    Version {
        /// The section.
        name: &'static str,
        /// Its version.
        version: u32,
    },
    /// A section in a place where it does not belong.
    #[error("sections out of order at {at}")]
    Order {
        /// Where it begins.
        at: usize,
    },
    /// A record of RAM that is none.
    #[error("an unknown RAM record {word:#x} at {at}")]
    Record {
        /// Its first number.
        word: u64,
        /// Where it begins.
        at: usize,
    },
    /// RAM blocks that can't be.
    #[error("a list of RAM blocks that contradicts itself at {at}")]
    List {
        /// Where it begins.
        at: usize,
    },
    /// A page that no block has.
    #[error("a page outside of its RAM block at {at}")]
    Page {
        /// Where its record begins.
        at: usize,
    },
}

/// A RAM block of the list, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// QEMU's name for it, such as `pc.bios`.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// Pages of it that are in the head.
    pub pages: u64,
}

/// A page of the head: where its content begins in it, none for one of zeros.
type Page = Option<usize>;

/// What is in a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Length in bytes: the first device begins here.
    pub length: usize,
    /// QEMU's machine type with its version, such as `pc-i440fx-7.2`.
    pub machine: String,
    /// All RAM blocks of the machine.
    pub blocks: Vec<Block>,
    /// By block and offset in it; of a page that comes more than once the last.
    pages: BTreeMap<(usize, u64), Page>,
}

impl Head {
    /// Whether this head, with its bytes, says the same as another: the same machine, blocks and pages, in whatever order and sections. The
    /// addresses of blocks in the guest may differ: those of ROMs change when a guest moves them, and a standby does not look at them.
    pub fn same_content(&self, bytes: &[u8], other: &Self, others: &[u8]) -> bool {
        let content = |bytes: &[u8], page: Page| -> Option<[u8; PAGE]> {
            let Some(at) = page else {
                return Some([0; PAGE]);
            };
            bytes.get(at..)?.first_chunk().copied()
        };
        let same = |(one, two): ((_, &Page), (_, &Page))| {
            one.0 == two.0 && content(bytes, *one.1) == content(others, *two.1)
        };
        self.machine == other.machine
            && self.blocks == other.blocks
            && self.pages.len() == other.pages.len()
            && self.pages.iter().zip(&other.pages).all(same)
    }
}

/// Reads the head of `stream`, which may go on behind it.
///
/// # Errors
/// What in it is not as in any stream that is known.
pub fn parse(stream: &[u8]) -> Result<Head, HeadError> {
    let (bytes, cut) = match stream.get(..HEAD_LIMIT) {
        Some(most) => (most, true),
        None => (stream, false),
    };
    let mut parser = Parser {
        reader: Reader { bytes, at: 0 },
        machine: None,
        capable: false,
        ram: Ram::Ahead,
        blocks: Vec::new(),
        pages: BTreeMap::new(),
        current: None,
    };
    match parser.head() {
        Err(HeadError::Truncated { .. }) if cut => Err(HeadError::TooLong),
        parsed => parsed,
    }
}

/// How far the RAM section is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ram {
    Ahead,
    Open { id: u32 },
    Complete,
}

struct Parser<'a> {
    reader: Reader<'a>,
    machine: Option<String>,
    capable: bool,
    ram: Ram,
    blocks: Vec<Block>,
    pages: BTreeMap<(usize, u64), Page>,
    /// The block of the last page.
    current: Option<usize>,
}

impl Parser<'_> {
    fn head(&mut self) -> Result<Head, HeadError> {
        if self.reader.take(PREAMBLE.len())? != PREAMBLE {
            return Err(HeadError::Preamble);
        }
        loop {
            let at = self.reader.at;
            let kind = self.reader.u8()?;
            match (kind, self.ram) {
                (section::FULL, Ram::Complete) => {
                    let machine = self.machine.take().ok_or(HeadError::Order { at })?;
                    return Ok(Head {
                        length: at,
                        machine,
                        blocks: std::mem::take(&mut self.blocks),
                        pages: std::mem::take(&mut self.pages),
                    });
                }
                (section::CONFIGURATION, Ram::Ahead) if self.machine.is_none() => {
                    let length = self.reader.u32()?;
                    self.machine = Some(self.reader.text(length as usize)?);
                }
                (section::SUBSECTION, Ram::Ahead) if self.machine.is_some() && !self.capable => {
                    self.capabilities()?;
                }
                (section::COMMAND, _) => self.command(at)?,
                (section::START, Ram::Ahead) if self.capable => self.start()?,
                (section::PART, Ram::Open { id }) => self.part(id, at)?,
                (section::END, Ram::Open { id }) => {
                    self.part(id, at)?;
                    self.ram = Ram::Complete;
                }
                // A device before the end of RAM is one whose state the other way would repeat behind the head.
                (
                    section::FULL
                    | section::CONFIGURATION
                    | section::SUBSECTION
                    | section::START
                    | section::PART
                    | section::END,
                    _,
                ) => return Err(HeadError::Order { at }),
                (kind, _) => return Err(HeadError::Section { kind, at }),
            }
        }
    }

    fn capabilities(&mut self) -> Result<(), HeadError> {
        let name = self.reader.name()?;
        if name != "configuration/capabilities" {
            let what = "part of the configuration";
            return Err(HeadError::Name { what, name });
        }
        let version = self.reader.u32()?;
        if version != 1 {
            let name = "configuration/capabilities";
            return Err(HeadError::Version { name, version });
        }
        let count = self.reader.u32()?;
        let mut found = Vec::new();
        for _ in 0..count.min(CAPABILITY_LIMIT) {
            found.push(self.reader.name()?);
        }
        if count != 1 || found.first().map(String::as_str) != Some(IGNORE_SHARED) {
            return Err(HeadError::Capabilities { found });
        }
        self.capable = true;
        Ok(())
    }

    fn command(&mut self, at: usize) -> Result<(), HeadError> {
        let (kind, length) = (self.reader.u16()?, self.reader.u16()?);
        if (kind, length) == (COMMAND_SWITCHOVER_START, 0) {
            Ok(())
        } else {
            Err(HeadError::Command { kind, length, at })
        }
    }

    fn start(&mut self) -> Result<(), HeadError> {
        let id = self.reader.u32()?;
        let name = self.reader.name()?;
        if name != "ram" {
            let what = "section beside RAM";
            return Err(HeadError::Name { what, name });
        }
        let at = self.reader.at;
        if self.reader.u32()? != 0 {
            return Err(HeadError::Order { at });
        }
        let version = self.reader.u32()?;
        if version != 4 {
            let name = "ram";
            return Err(HeadError::Version { name, version });
        }
        self.ram = Ram::Open { id };
        self.records()?;
        self.footer(id)
    }

    fn part(&mut self, id: u32, at: usize) -> Result<(), HeadError> {
        if self.reader.u32()? != id {
            return Err(HeadError::Order { at });
        }
        self.records()?;
        self.footer(id)
    }

    fn footer(&mut self, id: u32) -> Result<(), HeadError> {
        let at = self.reader.at;
        if self.reader.u8()? == section::FOOTER && self.reader.u32()? == id {
            Ok(())
        } else {
            Err(HeadError::Order { at })
        }
    }

    /// The records of one RAM section, to their end.
    fn records(&mut self) -> Result<(), HeadError> {
        loop {
            let at = self.reader.at;
            let word = self.reader.u64()?;
            let (value, flags) = (word & !ram::MASK, word & ram::MASK);
            match flags & !ram::CONTINUE {
                ram::END if word == ram::END => return Ok(()),
                ram::LIST if flags == ram::LIST && self.blocks.is_empty() => {
                    self.list(value, at)?
                }
                kind @ (ram::PAGE | ram::ZERO) => {
                    if flags & ram::CONTINUE == 0 {
                        let name = self.reader.name()?;
                        self.current = self.blocks.iter().position(|block| block.name == name);
                    }
                    let begin = self.reader.at;
                    match kind {
                        ram::PAGE => drop(self.reader.take(PAGE)?),
                        _ if self.reader.u8()? == 0 => {}
                        _ => return Err(HeadError::Record { word, at }),
                    }
                    self.page(value, (kind == ram::PAGE).then_some(begin), at)?;
                }
                _ => return Err(HeadError::Record { word, at }),
            }
        }
    }

    fn list(&mut self, total: u64, at: usize) -> Result<(), HeadError> {
        let wrong = HeadError::List { at };
        let mut left = total;
        while left > 0 {
            let name = self.reader.name()?;
            let length = self.reader.u64()?;
            self.reader.take(size_of::<u64>())?;
            let aligned = length > 0 && length.is_multiple_of(PAGE_SIZE);
            let known = self.blocks.iter().any(|block| block.name == name);
            if !aligned || known || self.blocks.len() == BLOCK_LIMIT {
                return Err(wrong);
            }
            left = left.checked_sub(length).ok_or_else(|| wrong.clone())?;
            self.blocks.push(Block {
                name,
                length,
                pages: 0,
            });
        }
        Ok(())
    }

    fn page(&mut self, offset: u64, page: Page, at: usize) -> Result<(), HeadError> {
        let outside = HeadError::Page { at };
        let index = self.current.ok_or_else(|| outside.clone())?;
        // Lengths and offsets are whole pages, so that a page that begins inside also ends there.
        let inside = self.blocks.get_mut(index);
        let block = inside
            .filter(|block| offset < block.length)
            .ok_or(outside)?;
        if self.pages.insert((index, offset), page).is_none() {
            block.pages += 1;
        }
        Ok(())
    }
}

/// A position in the stream.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HeadError> {
        let end = self.at.checked_add(length);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(HeadError::Truncated { at: self.at })?;
        self.at += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], HeadError> {
        let at = self.at;
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| HeadError::Truncated { at })
    }

    fn u8(&mut self) -> Result<u8, HeadError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, HeadError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, HeadError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, HeadError> {
        self.array().map(u64::from_be_bytes)
    }

    fn text(&mut self, length: usize) -> Result<String, HeadError> {
        let at = self.at;
        let text = std::str::from_utf8(self.take(length)?);
        text.map(str::to_owned)
            .map_err(|_| HeadError::NotText { at })
    }

    fn name(&mut self) -> Result<String, HeadError> {
        let length = self.u8()?;
        self.text(length.into())
    }
}

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
