//! The guest of the demo: a boot sector that counts on its disk ten times a second.
//!
//! `lab/guest.S` is its source; `lab/guest.bin` is the output of GNU as and ld, stored so that the demo
//! needs no assembler (a test assembles it again and compares). It writes one record to sector 1:
//! `"TBW1"`, then the counter as little-endian u32. The counter goes on from what the disk holds at boot.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// The boot sector.
pub const BOOT_SECTOR: &[u8] = include_bytes!("../../../lab/guest.bin");

/// Bytes of the guest's disk: room for its record and for the ring that it writes beside it.
pub const DISK_BYTES: u64 = 8 << 20;

const SECTOR: u64 = 512;
const MAGIC: [u8; 4] = *b"TBW1";

/// Creates the guest's disk.
///
/// # Errors
/// An error of the file system; an existing disk is not touched.
pub fn make_disk(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(BOOT_SECTOR)?;
    file.set_len(DISK_BYTES)?;
    file.sync_all()
}

/// The guest's counter; `None` before its first write.
///
/// # Errors
/// An error of the file system.
pub fn counter(path: &Path) -> io::Result<Option<u32>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(SECTOR))?;
    let mut record = [0; 8];
    file.read_exact(&mut record)?;
    let [a, b, c, d, counter @ ..] = record;
    Ok(([a, b, c, d] == MAGIC).then(|| u32::from_le_bytes(counter)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_boot_sector_is_what_its_source_says() {
        let dir = tempfile::tempdir().unwrap();
        let (object, binary) = (dir.path().join("guest.o"), dir.path().join("guest.bin"));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../lab/guest.S");
        let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
        run(Command::new("as").args(["--32", source, "-o"]).arg(&object));
        let link = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o"];
        run(Command::new("ld").args(link).arg(&binary).arg(&object));
        assert!(std::fs::read(binary).unwrap() == BOOT_SECTOR, "lab/guest.bin is stale: assemble lab/guest.S again");
        assert_eq!((BOOT_SECTOR.len() as u64, &BOOT_SECTOR[510..]), (SECTOR, &[0x55, 0xaa][..]));
    }

    #[test]
    fn a_disk_that_the_guest_has_not_written_has_no_counter() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk.raw");
        make_disk(&disk).unwrap();
        assert_eq!(counter(&disk).unwrap(), None);
        let mut file = OpenOptions::new().write(true).open(&disk).unwrap();
        file.seek(SeekFrom::Start(SECTOR)).unwrap();
        file.write_all(b"TBW1\x02\x01\x00\x00").unwrap();
        assert_eq!(counter(&disk).unwrap(), Some(258));
        assert!(make_disk(&disk).is_err(), "a disk is never overwritten");
    }
}
