//! Telling formats apart by their first bytes.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ImageError;

const KDUMP_ADVICE: &str = "convert it with `makedumpfile -E`, or dump again without -z, -l, -s (QEMU) or -c, -l, -p \
                            (makedumpfile); virsh: `dump --memory-only --format elf`";
const VIRSH_ADVICE: &str =
    "it holds a migration stream; dump again with `virsh dump --memory-only --format elf`";
const UNPACK_ADVICE: &str = "unpack it first";
const CONVERT_ADVICE: &str = "convert it to a raw memory file or an ELF dump";

/// Magic, name, advice. Magics as in the programs' own headers.
const UNSUPPORTED: [(&[u8], &str, &str); 13] = [
    (b"KDUMP   ", "a kdump-compressed dump", KDUMP_ADVICE),
    (b"DISKDUMP", "a diskdump-compressed dump", KDUMP_ADVICE),
    (
        b"makedumpfile\0",
        "a flattened makedumpfile dump",
        "rearrange it with `makedumpfile -R`, then convert it with `makedumpfile -E`",
    ),
    (b"LibvirtQemudSave", "a file of `virsh save` or `virsh dump`", VIRSH_ADVICE),
    (b"LibvirtQemudPart", "an unfinished file of `virsh save` or `virsh dump`", VIRSH_ADVICE),
    (b"QEVM", "a QEMU migration stream", VIRSH_ADVICE),
    (b"QFI\xfb", "a qcow2 disk", "give the guest's memory, not its disk"),
    (b"EMiL", "a LiME dump", CONVERT_ADVICE),
    (b"PAGEDU64", "a Windows crash dump", CONVERT_ADVICE),
    (b"PAGEDUMP", "a Windows crash dump", CONVERT_ADVICE),
    (b"\x28\xb5\x2f\xfd", "a zstd file", UNPACK_ADVICE),
    (b"\x1f\x8b\x08", "a gzip file", UNPACK_ADVICE),
    (b"\xfd7zXZ\0", "an xz file", UNPACK_ADVICE),
];

/// The error for a format that is known, but cannot be read.
pub(super) fn unsupported(file: &[u8]) -> Option<ImageError> {
    let &(_, format, advice) = UNSUPPORTED.iter().find(|(magic, _, _)| file.starts_with(magic))?;
    Some(ImageError::Unsupported { format, advice })
}
