//! A writer of `cpio` archives in the "newc" format, which the kernel unpacks as its initramfs.
//!
//! Format: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`. Each member is a
//! 110-byte header of ASCII hexadecimal fields, the NUL-terminated name, and the data, name and
//! data each padded to four bytes; the member named `TRAILER!!!` ends the archive.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes an archive member by member; every file belongs to root and has no time stamp, so that
/// equal contents give equal archives.
#[derive(Debug)]
pub(crate) struct CpioWriter<W: Write> {
    out: W,
    next_inode: u32,
}

impl<W: Write> CpioWriter<W> {
    /// Starts an archive on `out`.
    pub(crate) fn new(out: W) -> Self {
        Self { out, next_inode: 1 }
    }

    /// Adds a directory (its parents must have been added before).
    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.member(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// Adds a regular file with the permission bits of `mode`.
    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.member(name, REGULAR | (mode & 0o7777), (0, 0), data)
    }

    /// Adds a character device node.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.member(name, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive and returns the writer below.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.member("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn member(&mut self, name: &str, mode: u32, rdev: (u32, u32), data: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::other(format!("{name} is too large for a cpio archive"));
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let (uid, gid, mtime, device, checksum) = (0, 0, 0, (0, 0), 0);
        let fields = [
            inode, mode, uid, gid, links, mtime, size, device.0, device.1, rdev.0, rdev.1,
            name_size, checksum,
        ];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(6 + 8 * fields.len() + name.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    /// Pads a piece of `written` bytes, which began four-byte aligned, to a multiple of four.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        let missing = written.next_multiple_of(4) - written;
        self.out.write_all(&[0u8; 3][..missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut cpio = CpioWriter::new(Vec::new());
        cpio.directory("bin").unwrap();
        cpio.file("bin/odd", 0o755, b"12345").unwrap();
        cpio.file("empty", 0o644, b"").unwrap();
        cpio.device("null", 1, 3).unwrap();
        cpio.finish().unwrap()
    }

    #[test]
    fn members_are_aligned_and_the_trailer_comes_last() {
        let archive = sample();
        assert_eq!(archive.len() % 4, 0);
        let headers: Vec<_> = archive
            .windows(6)
            .enumerate()
            .filter(|(_, w)| w == b"070701")
            .map(|(at, _)| at)
            .collect();
        assert_eq!(headers.len(), 5);
        assert!(headers.iter().all(|at| at % 4 == 0), "{headers:?}");
        let last = &archive[headers[4]..];
        assert!(last[110..].starts_with(b"TRAILER!!!\0"));
        // The file's size is the seventh field.
        assert_eq!(&archive[headers[1] + 6 + 48..headers[1] + 6 + 56], b"00000005");
    }

    #[test]
    fn cpio_itself_reads_it() {
        let child = Command::new("cpio")
            .args(["-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "bin\nbin/odd\nempty\nnull\n");
    }
}
