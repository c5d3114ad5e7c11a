//! Why an ELF file is not a memory image.

use crate::addr::Gpa;
use crate::image::source::Unreadable;
use thiserror::Error;

/// Why an ELF file is not a memory image. Offsets are file offsets in bytes.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The file does not start with an ELF header.
    #[error("not an ELF file")]
    NotElf,
    /// The file ends inside the ELF header.
    #[error("the file ends inside the ELF header")]
    HeaderCut,
    /// Class or byte order differ from those of an x86 dump.
    #[error("ELF class {class}, data encoding {data}: expected 1 or 2, and 1 (little-endian)")]
    Ident {
        /// `EI_CLASS`.
        class: u8,
        /// `EI_DATA`.
        data: u8,
    },
    /// The file is a program or a library.
    #[error("ELF type {kind} is not a core dump (4); give a dump of the guest's memory")]
    NotCore {
        /// `e_type`.
        kind: u16,
    },
    /// The dump is of another architecture.
    #[error("ELF machine {machine} is neither i386 (3) nor x86-64 (62)")]
    Machine {
        /// `e_machine`.
        machine: u16,
    },
    /// Program headers are not of the size that the class prescribes.
    #[error("program headers of {size} bytes; expected {expected}")]
    HeaderSize {
        /// `e_phentsize`.
        size: u16,
        /// The size that the class prescribes.
        expected: u64,
    },
    /// `e_phnum` refers to section header 0, which the file does not have.
    #[error(
        "the number of program headers is in section header 0 at {offset:#x}, past the end of \
         the file"
    )]
    NoSectionHeader {
        /// `e_shoff`.
        offset: u64,
    },
    /// There are no program headers, or too many.
    #[error("{count} program headers; expected 1 to {max}")]
    HeaderCount {
        /// Their number.
        count: u32,
        /// The largest number that is read.
        max: u32,
    },
    /// The program headers reach past the end of the file.
    #[error("{count} program headers at {offset:#x} reach past the end of the file")]
    HeadersCut {
        /// `e_phoff`.
        offset: u64,
        /// Their number.
        count: u32,
    },
    /// A segment reaches past the end of the file.
    #[error(
        "program header {header}: {bytes:#x} bytes at {offset:#x} reach past the end of the file; \
         was the dump cut?"
    )]
    SegmentCut {
        /// Number of the program header, from 0.
        header: u32,
        /// `p_offset`.
        offset: u64,
        /// `p_filesz`.
        bytes: u64,
    },
    /// A segment has more bytes in the file than in memory.
    #[error("program header {header}: {file:#x} bytes in the file for {memory:#x} bytes of memory")]
    FileLarger {
        /// Number of the program header, from 0.
        header: u32,
        /// `p_filesz`.
        file: u64,
        /// `p_memsz`.
        memory: u64,
    },
    /// No segment describes memory.
    #[error("the dump describes no memory: it has no PT_LOAD program header")]
    NoMemory,
    /// Two segments disagree about the bytes at an address.
    #[error("two program headers hold different bytes for physical address {gpa}")]
    Conflict {
        /// First address of the range in which they differ.
        gpa: Gpa,
    },
    /// Segments overlap more than in any real dump.
    #[error("program headers describe physical address {gpa} and other memory too often")]
    TooMuchOverlap {
        /// Address at which the limit was reached.
        gpa: Gpa,
    },
    /// The system could not read a part of the file.
    #[error("file offset {offset:#x} cannot be read: {reason}")]
    Unreadable {
        /// File offset of the part.
        offset: u64,
        /// The system's reason.
        reason: String,
    },
    /// No segment has a physical address.
    #[error(
        "none of the {segments} segments has a physical address; give a dump of the guest's \
         physical memory, such as one of QEMU's `dump-guest-memory` without paging"
    )]
    NoPhysicalAddresses {
        /// Number of segments.
        segments: u32,
    },
    /// The dump is of a process instead of a machine.
    #[error(
        "this is the core dump of a process: its segments are at virtual addresses, and none has \
         a physical address. Dump the guest instead of its VMM: `virsh dump --memory-only \
         --format elf`, or `dump-guest-memory` in QEMU's monitor"
    )]
    Process,
    /// The dump has its memory in sections, which only Xen's tools write.
    #[error(
        "this dump has its memory in sections, as Xen's `xl dump-core` writes it. Take a raw \
         image instead: `vmi-dump-memory DOMAIN FILE` of LibVMI writes one"
    )]
    Sections,
}

impl From<Unreadable> for ElfError {
    fn from(Unreadable { offset, reason }: Unreadable) -> Self {
        Self::Unreadable { offset, reason }
    }
}
