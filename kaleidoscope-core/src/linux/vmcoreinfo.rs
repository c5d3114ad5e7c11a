//! VMCOREINFO: the text page in which a kernel describes itself to crash-dump tools.
//!
//! The kernel writes the page at boot (`crash_save_vmcoreinfo_init`) if kexec or kdump is built in,
//! which is the case in distributions. The text is page-aligned and starts with `OSRELEASE=`, so
//! checking the first bytes of every frame finds it. The kernel documents the format in
//! `Documentation/admin-guide/kdump/vmcoreinfo.rst`: lines `KEY=VALUE`, terminated by a NUL.

use crate::addr::Gva;
use thiserror::Error;

/// The first bytes of a VMCOREINFO page.
pub const SIGNATURE: &[u8] = b"OSRELEASE=";

/// Maximum length of an accepted text, in bytes: one page of the largest page size that Linux
/// supports (64 KiB on arm64; 4 KiB on x86-64).
pub const MAX_BYTES: usize = 64 << 10;

/// Why bytes are not a VMCOREINFO text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VmcoreInfoError {
    /// The first line is not `OSRELEASE=`.
    #[error("the text does not start with OSRELEASE=")]
    NoSignature,
    /// A byte that no kernel writes into the text.
    #[error("byte {byte:#04x} at offset {offset:#x} is not printable ASCII")]
    NotText {
        /// Offset in bytes from the start of the page.
        offset: usize,
        /// The byte found.
        byte: u8,
    },
    /// A line without `=`; the page is torn or not VMCOREINFO.
    #[error("the line at offset {offset:#x} has no '='")]
    NoValue {
        /// Offset of the line in bytes from the start of the page.
        offset: usize,
    },
}

/// A parsed VMCOREINFO text. Lookups scan its few hundred lines; none is on a hot path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmcoreInfo {
    text: Box<str>,
}

impl VmcoreInfo {
    /// Parses the text at the start of `page`. Ignores everything after the first NUL or after
    /// [`MAX_BYTES`].
    ///
    /// # Errors
    /// If the text does not start with `OSRELEASE=`, or is not `KEY=VALUE` text in printable ASCII.
    pub fn parse(page: &[u8]) -> Result<Self, VmcoreInfoError> {
        if !page.starts_with(SIGNATURE) {
            return Err(VmcoreInfoError::NoSignature);
        }
        let bounded = page.get(..MAX_BYTES).unwrap_or(page);
        let text = bounded.split(|&byte| byte == 0).next().unwrap_or(bounded);
        let not_text = |byte: u8| !(byte == b'\n' || byte == b' ' || byte.is_ascii_graphic());
        if let Some((offset, &byte)) = text.iter().enumerate().find(|&(_, &byte)| not_text(byte)) {
            return Err(VmcoreInfoError::NotText { offset, byte });
        }
        let mut offset = 0_usize;
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            if !line.contains(&b'=') && line != b"\n" {
                return Err(VmcoreInfoError::NoValue { offset });
            }
            offset = offset.saturating_add(line.len());
        }
        // Every byte is ASCII, so nothing is replaced.
        Ok(Self { text: String::from_utf8_lossy(text).into() })
    }

    /// All `(key, value)` pairs in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text.lines().filter_map(|line| line.split_once('='))
    }

    /// The value of the first line `key=`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.entries().find_map(|(found, value)| (found == key).then_some(value))
    }

    /// The kernel release, as `uname -r` prints it.
    #[must_use]
    pub fn os_release(&self) -> &str {
        self.value("OSRELEASE").unwrap_or_default()
    }

    /// The kernel's build ID in hexadecimal (since 5.14).
    #[must_use]
    pub fn build_id(&self) -> Option<&str> {
        self.value("BUILD-ID")
    }

    /// The kernel's page size in bytes.
    #[must_use]
    pub fn page_size(&self) -> Option<u64> {
        self.value("PAGESIZE")?.parse().ok()
    }

    /// Virtual address of a kernel symbol at run time (`SYMBOL(name)`).
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<Gva> {
        hexadecimal(self.call("SYMBOL", name)?).map(Gva)
    }

    /// Offset in bytes of a field, named `structure.field` (`OFFSET(page.flags)`).
    #[must_use]
    pub fn offset(&self, field: &str) -> Option<u64> {
        self.call("OFFSET", field)?.parse().ok()
    }

    /// Size in bytes of a type (`SIZE(page)`).
    #[must_use]
    pub fn size(&self, name: &str) -> Option<u64> {
        self.call("SIZE", name)?.parse().ok()
    }

    /// Number of elements of an array (`LENGTH(zone.free_area)`).
    #[must_use]
    pub fn length(&self, name: &str) -> Option<u64> {
        self.call("LENGTH", name)?.parse().ok()
    }

    /// A constant or variable (`NUMBER(PG_lru)`). Most are signed decimals; addresses are written
    /// `0x...` and are returned with the same 64 bits.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<i64> {
        let value = self.call("NUMBER", name)?;
        match value.strip_prefix("0x") {
            Some(digits) => hexadecimal(digits).map(u64::cast_signed),
            None => value.parse().ok(),
        }
    }

    /// Whether the text reports that the kernel was built with `CONFIG_<name>`. Kernels report only
    /// a handful of options.
    #[must_use]
    pub fn config(&self, name: &str) -> bool {
        self.entries().any(|(key, value)| value == "y" && key.strip_prefix("CONFIG_") == Some(name))
    }

    /// The x86-64 variable `phys_base`: physical = virtual - `0xffffffff80000000` + `phys_base` for
    /// addresses in the kernel image. Negative if the image was loaded below its linked address.
    #[must_use]
    pub fn phys_base(&self) -> Option<i64> {
        self.number("phys_base")
    }

    /// The offset by which KASLR moved the kernel image, in bytes.
    #[must_use]
    pub fn kernel_offset(&self) -> Option<u64> {
        hexadecimal(self.value("KERNELOFFSET")?)
    }

    /// Time of the kernel's crash, in seconds since 1970; `None` if it has not crashed.
    #[must_use]
    pub fn crash_time(&self) -> Option<u64> {
        self.value("CRASHTIME")?.parse().ok()
    }

    /// The value of the line `function(argument)=`.
    fn call(&self, function: &str, argument: &str) -> Option<&str> {
        self.entries().find_map(|(key, value)| {
            let found = key.strip_prefix(function)?.strip_prefix('(')?.strip_suffix(')')?;
            (found == argument).then_some(value)
        })
    }
}

/// A hexadecimal number with or without `0x`.
fn hexadecimal(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits.strip_prefix("0x").unwrap_or(digits), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &[u8] = b"OSRELEASE=6.1.0-cloud\nBUILD-ID=3b43\nPAGESIZE=4096\n\
        SYMBOL(_stext)=ffffffff93600000\nSIZE(page)=64\nOFFSET(page.flags)=0\n\
        OFFSET(page.private)=40\nLENGTH(zone.free_area)=11\nNUMBER(phys_base)=-195035136\n\
        NUMBER(VMALLOC_START)=0xffffd02340000000\nKERNELOFFSET=12600000\nCONFIG_X86_PAE=y\n\
        CRASHTIME=1700000000\n\0\xff\xff";

    #[test]
    fn every_kind_of_line_is_understood() {
        let info = VmcoreInfo::parse(SAMPLE).unwrap();
        assert_eq!(info.os_release(), "6.1.0-cloud");
        assert_eq!(info.build_id(), Some("3b43"));
        assert_eq!(info.page_size(), Some(4096));
        assert_eq!(info.symbol("_stext"), Some(Gva(0xffff_ffff_9360_0000)));
        assert_eq!(info.size("page"), Some(64));
        assert_eq!(info.offset("page.flags"), Some(0));
        assert_eq!(info.offset("page.private"), Some(40));
        assert_eq!(info.length("zone.free_area"), Some(11));
        assert_eq!(info.number("VMALLOC_START"), Some(0xffff_d023_4000_0000_u64.cast_signed()));
        assert_eq!(info.phys_base(), Some(-195_035_136));
        assert_eq!(info.kernel_offset(), Some(0x1260_0000));
        assert_eq!(info.crash_time(), Some(1_700_000_000));
        assert!(info.config("X86_PAE"));
        assert!(!info.config("X86"));
    }

    #[test]
    fn missing_values_are_none() {
        let info =
            VmcoreInfo::parse(b"OSRELEASE=6\nSYMBOL(a)=xyz\nNUMBER(b)=\nOFFSET(c=1\n").unwrap();
        assert_eq!(
            (info.symbol("a"), info.number("b"), info.offset("c"), info.size("d")),
            (None, None, None, None)
        );
        assert_eq!((info.build_id(), info.kernel_offset(), info.crash_time()), (None, None, None));
    }

    #[test]
    fn other_bytes_are_refused_with_their_place() {
        assert_eq!(VmcoreInfo::parse(b"OSRELEAS"), Err(VmcoreInfoError::NoSignature));
        assert_eq!(
            VmcoreInfo::parse(b"OSRELEASE=6\n\x80"),
            Err(VmcoreInfoError::NotText { offset: 12, byte: 0x80 })
        );
        assert_eq!(
            VmcoreInfo::parse(b"OSRELEASE=6\nhello\n"),
            Err(VmcoreInfoError::NoValue { offset: 12 })
        );
    }

    #[test]
    fn text_may_fill_the_page_to_its_last_byte() {
        let info = VmcoreInfo::parse(b"OSRELEASE=6\nKERNELOFFSET=1f").unwrap();
        assert_eq!(info.kernel_offset(), Some(0x1f));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut tail in proptest::collection::vec(any::<u8>(), 0..512),
            flip in any::<prop::sample::Index>(),
        ) {
            let mut page = SAMPLE.to_vec();
            let at = flip.index(page.len());
            page[at] ^= 1 << (tail.len() % 8);
            page.append(&mut tail);
            if let Ok(info) = VmcoreInfo::parse(&page) {
                let _ = (info.phys_base(), info.kernel_offset());
                let _ = (info.symbol("_stext"), info.crash_time());
                prop_assert!(info.entries().count() <= page.len());
            }
        }
    }
}
