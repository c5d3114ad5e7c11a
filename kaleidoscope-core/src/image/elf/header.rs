//! The ELF header and the program headers, of both classes.
//!
//! Layouts follow the System V ABI, chapters 4 and 5. `e_ehsize` is not checked because QEMU writes
//! a wrong value.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ElfError;
use super::fields::{u16_at, u32_at, u64_at};
use crate::image::source::Source;
use std::borrow::Cow;

/// A segment with memory.
pub(super) const PT_LOAD: u32 = 1;
/// A segment with notes.
pub(super) const PT_NOTE: u32 = 4;

/// A program at fixed addresses.
pub(super) const ET_EXEC: u16 = 2;
/// A library, or a program at any addresses.
pub(super) const ET_DYN: u16 = 3;
/// A dump.
pub(super) const ET_CORE: u16 = 4;

/// Size of the ELF64 header in bytes; the ELF32 header is shorter.
const HEADER_BYTES: u64 = 64;

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;

/// Value of `e_phnum` if the number does not fit; section header 0 holds the number.
const PN_XNUM: u16 = 0xffff;

/// Maximum number of program headers, more than any dump has; bounds the table at 56 MiB.
const MAX_PROGRAM_HEADERS: u32 = 1 << 20;

/// Field offsets in bytes, which differ between the classes.
struct Class {
    /// Reads an address, offset or size.
    word: fn(&[u8], u64) -> Option<u64>,
    e_phoff: u64,
    e_shoff: u64,
    e_phentsize: u64,
    e_phnum: u64,
    sh_info: u64,
    e_shnum: u64,
    p_offset: u64,
    p_vaddr: u64,
    p_paddr: u64,
    p_filesz: u64,
    p_memsz: u64,
    /// Size of a program header in bytes.
    phdr: u64,
    /// An offset or address with all bits set, which means absent.
    none: u64,
}

const CLASS32: Class = Class {
    word: |data, offset| u32_at(data, offset).map(u64::from),
    e_phoff: 28,
    e_shoff: 32,
    e_phentsize: 42,
    e_phnum: 44,
    sh_info: 28,
    e_shnum: 48,
    p_offset: 4,
    p_vaddr: 8,
    p_paddr: 12,
    p_filesz: 16,
    p_memsz: 20,
    phdr: 32,
    none: 0xffff_ffff,
};

const CLASS64: Class = Class {
    word: u64_at,
    e_phoff: 32,
    e_shoff: 40,
    e_phentsize: 54,
    e_phnum: 56,
    sh_info: 44,
    e_shnum: 60,
    p_offset: 8,
    p_vaddr: 16,
    p_paddr: 24,
    p_filesz: 32,
    p_memsz: 40,
    phdr: 56,
    none: u64::MAX,
};

/// The parsed headers.
pub(super) struct Header<'a> {
    /// Whether the machine is x86-64 instead of i386. QEMU derives this from the mode of the first
    /// vCPU.
    pub(super) long_mode: bool,
    class: &'static Class,
    /// The program header table.
    table: Cow<'a, [u8]>,
}

/// One program header.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgramHeader {
    /// Its number, from 0.
    pub(super) number: u32,
    pub(super) kind: u32,
    /// File offset, or `None` if the dump marks it absent.
    pub(super) offset: Option<u64>,
    pub(super) vaddr: u64,
    /// Physical address; all bits set if the dump marks it absent.
    pub(super) paddr: u64,
    /// Whether the physical address is present.
    pub(super) has_paddr: bool,
    pub(super) filesz: u64,
    pub(super) memsz: u64,
}

impl<'a> Header<'a> {
    /// Parses the headers of a file of one of these types (`e_type`).
    pub(super) fn parse<S>(file: &'a S, kinds: &[u16]) -> Result<Self, ElfError>
    where
        S: Source + ?Sized,
    {
        let start = file.start(HEADER_BYTES)?;
        let start = &*start;
        if !start.starts_with(b"\x7fELF") {
            return Err(ElfError::NotElf);
        }
        let &[class, data] = start.get(4..6).ok_or(ElfError::HeaderCut)? else {
            return Err(ElfError::HeaderCut);
        };
        let class = match (class, data) {
            (1, 1) => &CLASS32,
            (2, 1) => &CLASS64,
            _ => return Err(ElfError::Ident { class, data }),
        };
        let u16_field = |offset| u16_at(start, offset).ok_or(ElfError::HeaderCut);
        let word_field = |offset| (class.word)(start, offset).ok_or(ElfError::HeaderCut);
        let kind = u16_field(16)?;
        if !kinds.contains(&kind) {
            return Err(ElfError::NotCore { kind });
        }
        let long_mode = match u16_field(18)? {
            EM_386 => false,
            EM_X86_64 => true,
            machine => return Err(ElfError::Machine { machine }),
        };
        let size = u16_field(class.e_phentsize)?;
        if u64::from(size) != class.phdr {
            return Err(ElfError::HeaderSize { size, expected: class.phdr });
        }
        let count = match u16_field(class.e_phnum)? {
            PN_XNUM => {
                let offset = word_field(class.e_shoff)?;
                let at = offset.checked_add(class.sh_info).filter(|_| offset != 0);
                let info = at.map_or(Ok(None), |at| file.bytes_at(at, 4))?;
                let info = info.and_then(|info| u32_at(&info, 0));
                info.ok_or(ElfError::NoSectionHeader { offset })?
            }
            count => u32::from(count),
        };
        // Section header 0 is always a null entry, so a file with sections has at least two.
        if count == 0 && kind == ET_CORE && u16_field(class.e_shnum)? > 1 {
            return Err(ElfError::Sections);
        }
        if count == 0 || count > MAX_PROGRAM_HEADERS {
            return Err(ElfError::HeaderCount { count, max: MAX_PROGRAM_HEADERS });
        }
        let offset = word_field(class.e_phoff)?;
        let len = u64::from(count).saturating_mul(class.phdr);
        let table = file.bytes_at(offset, len)?;
        let table = table.ok_or(ElfError::HeadersCut { offset, count })?;
        Ok(Self { long_mode, class, table })
    }

    /// The program headers, in the order of the file.
    pub(super) fn program_headers(&self) -> impl Iterator<Item = ProgramHeader> + '_ {
        let class = self.class;
        let size = usize::try_from(class.phdr).unwrap_or(usize::MAX);
        (0..).zip(self.table.chunks_exact(size)).filter_map(move |(number, header)| {
            let word_field = |offset| (class.word)(header, offset);
            Some(ProgramHeader {
                number,
                kind: u32_at(header, 0)?,
                offset: word_field(class.p_offset).filter(|&offset| offset != class.none),
                vaddr: word_field(class.p_vaddr)?,
                paddr: word_field(class.p_paddr)?,
                has_paddr: word_field(class.p_paddr)? != class.none,
                filesz: word_field(class.p_filesz)?,
                memsz: word_field(class.p_memsz)?,
            })
        })
    }
}

impl ProgramHeader {
    /// File offset of the segment's bytes. Fails unless all of them are in the file.
    pub(super) fn file_range_start(&self, file_bytes: u64) -> Result<u64, ElfError> {
        let offset = self.offset.unwrap_or(u64::MAX);
        let end = offset.checked_add(self.filesz).filter(|&end| end <= file_bytes);
        let cut = ElfError::SegmentCut { header: self.number, offset, bytes: self.filesz };
        end.map(|_| offset).ok_or(cut)
    }
}
