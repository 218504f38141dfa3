#![allow(clippy::unwrap_used)]

use super::*;
use crate::device_state::{head, streams};

fn check_stream(stream: &[u8]) -> Result<AcpiTables, RomError> {
    let head = head::parse(stream).unwrap();
    check(&head, &stream[head.length..])
}

#[test]
fn the_roms_of_pcs_are_kept_with_the_note_on_their_tables() {
    for stream in [
        streams::pc_7_2(),
        streams::pc_10_0(),
        streams::q35_net_10_0(),
    ] {
        assert_eq!(check_stream(&stream), Ok(AcpiTables::Built(1)));
    }
}

#[test]
fn writable_memory_of_devices_is_never_kept() {
    let error = check_stream(&streams::pflash_7_2()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "RAM block \"system.flash0\" (256 KiB) may be written unseen"
    );
    let error = check_stream(&streams::vga_7_2()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "RAM block \"0000:00:02.0/vga.vram\" (16384 KiB) may be written unseen"
    );
}

#[test]
fn only_roms_count_as_roms() {
    for rom in [
        "0000:00:03.0/e1000.rom",
        "0000:00:02.0:00.0/virtio-net-pci.rom",
    ] {
        assert!(is_pci_rom(rom), "{rom}");
    }
    for other in [
        "0000:00:02.0/vga.vram",
        "pc.rom",
        "tpm-ppi",
        "/x/a.rom",
        "a.rom",
        "0000:00:02.0/rom",
    ] {
        assert!(!is_pci_rom(other), "{other}");
    }
}

#[test]
fn what_else_may_be_wrong_with_a_machine_is_found() {
    let stream = streams::pc_7_2();
    let good = head::parse(&stream).unwrap();
    let devices = &stream[good.length..];
    let error = |change: fn(&mut Head)| {
        let mut head = good.clone();
        change(&mut head);
        check(&head, devices).unwrap_err()
    };
    let machine = error(|h| h.machine = "isapc".into());
    assert_eq!(
        machine,
        RomError::Machine {
            machine: "isapc".into()
        }
    );
    // Memory that is not shared travels; memory of another name is not ours.
    assert_eq!(error(|h| h.blocks[0].pages = 1), RomError::GuestRam);
    assert_eq!(error(|h| drop(h.blocks.remove(0))), RomError::GuestRam);
    assert!(matches!(
        error(|h| h.blocks[0].name = "pc.ram".into()),
        RomError::Block { .. }
    ));
    assert!(matches!(
        error(|h| h.blocks[2].pages -= 1),
        RomError::Incomplete { .. }
    ));
    assert_eq!(check(&good, b"no devices"), Err(RomError::Acpi));
}

/// A section like QEMU's, with this note.
fn section(id: u8, note: u8) -> Vec<u8> {
    let tail = [0, 0, 0, 0, 0, 0, 0, 1, note, 0x7E, 0, 0, 0, id];
    [&[4, 0, 0, 0, id], ACPI_SECTION, &tail].concat()
}

#[test]
fn the_note_is_found_only_if_there_is_one() {
    assert_eq!(acpi_tables(b""), AcpiTables::None);
    assert_eq!(acpi_tables(ACPI_SECTION), AcpiTables::None);
    let real = section(40, 1);
    let between = [b"before", &real[..], b"behind"].concat();
    assert_eq!(acpi_tables(&between), AcpiTables::Built(1));
    for cut in 0..real.len() {
        assert_eq!(acpi_tables(&real[..cut]), AcpiTables::None, "{cut}");
    }
    // Framed wrongly: it is in the middle of something else.
    for at in [0, 1, 16, 23, 25, 29] {
        let mut other = real.clone();
        other[at] ^= 0x40;
        assert_eq!(acpi_tables(&other), AcpiTables::None, "{at}");
    }
    let twice = [real.clone(), section(41, 0)].concat();
    assert_eq!(acpi_tables(&twice), AcpiTables::Unclear);
}
