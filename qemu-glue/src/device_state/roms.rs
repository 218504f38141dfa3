//! Which small RAM blocks of a machine can be kept from one checkpoint to the next, and when they change all the same.
//! Pure. What is not known here for certain is never kept.
//!
//! QEMU's `xen-save-devices-state` leaves all RAM blocks out. The guest's memory is in its shared file anyhow; the others
//! are the machine's ROMs, whose content is taken from the last whole stream. That is right only as long as they are
//! constant. Block by block, for the machine types `pc` and `q35`:
//!
//! - `pc.bios`, `pc.rom`, `/rom@genroms/...` and the ROM of a PCI device: mapped read-only, so that what the guest writes
//!   there is lost. (What firmware copies below 1 MiB and writes to is *shadow RAM*, which lies in the guest's memory. On
//!   `isapc`, which has no shadow RAM, `pc.rom` is writable.) QEMU itself writes to them only when the machine is reset.
//! - `/rom@etc/acpi/tables`, `/rom@etc/acpi/rsdp` and `/rom@etc/table-loader`: not mapped at all; the firmware reads them by
//!   `fw_cfg`. QEMU builds them anew when they are read for the first time after a reset: then the firmware has set up the
//!   PCI devices, whose addresses go into the tables. This may be any time after the reset; a boot menu waits for ever.
//!   But QEMU notes whether it has been done, in the one byte of its section [`acpi_build`](AcpiTables), which is part of
//!   every device state. Nothing else writes them.
//!
//! So a head is good for as long as the machine was not reset, which QEMU reports by an event, and the note is the same.
//! All else, such as flash, VGA memory or the mailbox of a TPM, is written at any time and unseen: a machine with a block
//! of any other name gets its device state by `migrate`.

use memchr::memmem;

use super::head::{Head, section};
use crate::arguments::RAM_BACKEND;
use crate::page_set::PAGE_SIZE;

/// Machine types whose ROMs are known, up to the version.
const MACHINES: &[&str] = &["pc-i440fx-", "pc-q35-"];

/// Blocks that only a reset changes.
const CONSTANT: &[&str] = &["pc.bios", "pc.rom"];

/// Option ROMs that QEMU brings along, for instance to boot a kernel directly.
const OPTION_ROMS: &str = "/rom@genroms/";

/// Blocks that are built anew at their first read after a reset.
const ACPI: &[&str] = &[
    "/rom@etc/acpi/tables",
    "/rom@etc/acpi/rsdp",
    "/rom@etc/table-loader",
];

/// The name of the section with QEMU's note, behind its length.
const ACPI_SECTION: &[u8] = b"\x0aacpi_build";

/// Why the ROMs of a machine can't be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RomError {
    #[error("machine type {machine} is not known well enough")]
    Machine { machine: String },
    #[error("RAM block \"{name}\" ({kib} KiB) may be written unseen")]
    Block { name: String, kib: u64 },
    #[error("RAM block \"{name}\" is not complete")]
    Incomplete { name: String },
    #[error("the guest's memory is not left out of the stream")]
    GuestRam,
    #[error("the state of the ACPI tables is not to be found")]
    Acpi,
}

/// QEMU's note about its ACPI tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcpiTables {
    /// There is no note: the machine has no such tables.
    None,
    /// The byte of the note: 0 since the machine was reset, 1 since the tables were read.
    Built(u8),
    /// There is something like a note more than once.
    Unclear,
}

/// Checks that all RAM blocks in `head` are the guest's memory or ROMs that can be kept. `devices` is the rest of the
/// same stream. Returns the note that the ROMs belong to.
pub(crate) fn check(head: &Head, devices: &[u8]) -> Result<AcpiTables, RomError> {
    if !MACHINES.iter().any(|known| head.machine.starts_with(known)) {
        let machine = head.machine.clone();
        return Err(RomError::Machine { machine });
    }
    let mut guest_ram = 0;
    let mut tables = false;
    for block in &head.blocks {
        let name = block.name.as_str();
        if name.rsplit('/').next() == Some(RAM_BACKEND) {
            guest_ram += 1;
            if block.pages > 0 {
                return Err(RomError::GuestRam);
            }
            continue;
        }
        let acpi = ACPI.contains(&name);
        tables |= acpi;
        if !(acpi || CONSTANT.contains(&name) || name.starts_with(OPTION_ROMS) || is_pci_rom(name))
        {
            return Err(RomError::Block {
                name: name.to_owned(),
                kib: block.length >> 10,
            });
        }
        if block.pages < block.length / PAGE_SIZE {
            let name = name.to_owned();
            return Err(RomError::Incomplete { name });
        }
    }
    if guest_ram != 1 {
        return Err(RomError::GuestRam);
    }
    match acpi_tables(devices) {
        AcpiTables::Unclear => Err(RomError::Acpi),
        AcpiTables::None if tables => Err(RomError::Acpi),
        note => Ok(note),
    }
}

/// Whether a block is the ROM of a PCI device: `0000:00:03.0/virtio-net-pci.rom`. QEMU makes them read-only, each.
fn is_pci_rom(name: &str) -> bool {
    let Some((place, rom)) = name.rsplit_once('/') else {
        return false;
    };
    let hexadecimal = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | '/');
    rom.ends_with(".rom") && place.contains(':') && place.chars().all(hexadecimal)
}

/// Looks for QEMU's note among the devices of a stream.
///
/// The sections of devices don't say how long they are, so it is searched for; all that frames it must fit. A second one,
/// which a guest could place somewhere in a device, makes it unclear.
pub(crate) fn acpi_tables(devices: &[u8]) -> AcpiTables {
    let mut found = AcpiTables::None;
    for at in memmem::find_iter(devices, ACPI_SECTION) {
        match (found, note_at(devices, at)) {
            (_, None) => {}
            (AcpiTables::None, Some(note)) => found = AcpiTables::Built(note),
            (_, Some(_)) => return AcpiTables::Unclear,
        }
    }
    found
}

/// The note in the section whose name is at `at`: `├ 04 ┼ section u32 ┼ name ┼ instance u32 = 0 ┼ version u32 = 1 ┼
/// note u8 ┼ 7e ┼ section u32 ┤`.
fn note_at(devices: &[u8], at: usize) -> Option<u8> {
    let start = at.checked_sub(5)?;
    let (kind, id) = devices.get(start..at)?.split_first()?;
    let behind = devices.get(at.checked_add(ACPI_SECTION.len())?..)?;
    let (numbers, behind) = behind.split_at_checked(8)?;
    let (note, behind) = behind.split_first()?;
    let (footer, behind) = behind.split_first()?;
    let framed = *kind == section::FULL
        && numbers == [0, 0, 0, 0, 0, 0, 0, 1]
        && *footer == section::FOOTER
        && behind.starts_with(id);
    framed.then_some(*note)
}

#[cfg(test)]
#[path = "roms_tests.rs"]
mod tests;
