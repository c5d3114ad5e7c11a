//! Detects other formats by their first bytes, so that a file of a known format is named instead of
//! being read as RAM.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::ImageError;

/// Number of bytes at the start of a file in which signatures are searched.
pub(super) const SIGNATURE_BYTES: u64 = 0x1_1000;

const KDUMP: &str = "makedumpfile cannot convert it (its -E takes ELF dumps only). Dump again as \
    ELF: `dump-guest-memory FILE` in QEMU's monitor, without -z, -l and -s; `virsh dump \
    --memory-only --format elf`; in a crash kernel `makedumpfile -E -d 1 /proc/vmcore FILE`, or a \
    plain copy of /proc/vmcore. If there is no other copy, a program that uses libkdumpfile can \
    copy its pages into a raw file";
const FLATTENED: &str = "rearrange it with `makedumpfile -R DUMP < THIS`; the result can be read \
    if it was written as ELF (makedumpfile -F -E)";
const STREAM: &str = "it is a stream of device states with memory among them; dump again with \
    `virsh dump --memory-only --format elf`, or `dump-guest-memory FILE` in QEMU's monitor";
const LIME: &str = "convert it with `avml-convert --source-format lime --format raw THIS RAM`, or \
    dump again with LiME's format=padded; both are raw from address 0 on, with holes (a layout \
    file of one line, `0x0 0x0 SIZE`, if it is large)";
const AVML: &str = "convert it with `avml-convert --format raw THIS RAM`; the result is raw from \
    address 0 on, with holes (a layout file of one line, `0x0 0x0 SIZE`, if it is large)";
const UNPACK: &str = "unpack it first";
const VMWARE: &str = "the memory is in the .vmem file beside it, which is raw (with a layout file \
    if it is larger than 3 GiB: VMware leaves a hole from 3 to 4 GiB); where there is none, \
    `vmss2core -N` makes an ELF dump of it";
const WINDOWS: &str = "it is a dump of Windows, not of Linux; for its page tables alone, convert \
    it to a raw file, with Volatility's `layerwriter` for example";
const HIBERNATION: &str = "its pages are compressed and in no order; resume the guest and dump \
    its memory: `virsh dump --memory-only --format elf`, for example";
const VIRTUALBOX: &str = "resume the guest, and dump it with `VBoxManage debugvm NAME dumpvmcore \
    --filename FILE`, which writes an ELF dump";
const XEN: &str = "it is a stream of records with memory among them; restore the domain, and take \
    a raw image with `vmi-dump-memory DOMAIN FILE` of LibVMI";
const FIRECRACKER: &str = "it holds devices and vCPUs; give the snapshot's memory file \
    (mem_file_path), with --format firecracker";
const CRIU: &str =
    "CRIU saves processes and not machines; dump the memory of the guest that they run in";
const DISK: &str = "give the guest's memory, not its disk";
const KERNEL: &str = "give the guest's memory, not the kernel that it boots";
const SNAPSHOT_TEXT: &str = "it describes a machine; of a cloud-hypervisor snapshot give the file \
    memory-ranges, with --format cloud-hypervisor";
const TEXT: &str = "give the guest's memory: a raw file, an ELF dump, or a VMM's memory file";
const MAP: &str = "it holds colors, not memory; `kaleidoscope map` shows it";
const OWN: &str = "it is made from a guest's memory, and holds none; give the memory image";
const EVIDENCE: &str = "export the memory in it as a raw file, with `ewfexport` for example";
const HPAK: &str =
    "extract the memory in it as a raw file, with Volatility's `hpakextract` for example";

/// A known format that cannot be read.
struct Signature {
    /// Offset of the magic in the file.
    at: usize,
    magic: &'static [u8],
    format: &'static str,
    advice: &'static str,
}

const fn at(
    at: usize,
    magic: &'static [u8],
    format: &'static str,
    advice: &'static str,
) -> Signature {
    Signature { at, magic, format, advice }
}

const fn start(magic: &'static [u8], format: &'static str, advice: &'static str) -> Signature {
    at(0, magic, format, advice)
}

/// Magic numbers from the headers of the programs that write the formats.
const SIGNATURES: &[Signature] = &[
    // Dumps of machines.
    start(b"KDUMP   ", "a kdump-compressed dump", KDUMP),
    start(b"DISKDUMP", "a diskdump-compressed dump", KDUMP),
    start(b"makedumpfile\0", "a flattened makedumpfile dump", FLATTENED),
    start(b"EMiL", "a LiME dump", LIME),
    start(b"AVML", "an AVML dump", AVML),
    start(b"PAGEDU64", "a Windows crash dump", WINDOWS),
    start(b"PAGEDUMP", "a Windows crash dump", WINDOWS),
    start(b"MDMP\x93\xa7", "a Windows minidump", WINDOWS),
    start(b"HPAK", "an HPAK dump", HPAK),
    start(b"EVF\x09\x0d\x0a\xff\x00", "an EnCase evidence file", EVIDENCE),
    // Saved machines.
    start(b"LibvirtQemudSave", "a file of `virsh save` or `virsh dump`", STREAM),
    start(b"LibvirtQemudPart", "an unfinished file of `virsh save` or `virsh dump`", STREAM),
    start(b"QEVM", "a QEMU migration stream", STREAM),
    start(b"\xd0\xbe\xd2\xbe", "a VMware saved state or snapshot (vmss, vmsn)", VMWARE),
    start(b"\xd1\xba\xd1\xba", "a VMware saved state or snapshot (vmss, vmsn)", VMWARE),
    start(b"\xd2\xbe\xd2\xbe", "a VMware saved state or snapshot (vmss, vmsn)", VMWARE),
    start(b"\xd3\xbe\xd3\xbe", "a VMware saved state or snapshot (vmss, vmsn)", VMWARE),
    start(b"\x7fVirtualBox SavedState V", "a VirtualBox saved state", VIRTUALBOX),
    start(b"XenSavedDomain", "a saved Xen domain", XEN),
    start(b"Xen saved domain", "a saved Xen domain", XEN),
    start(b"LinuxGuestRecord", "a saved Xen domain", XEN),
    start(b"LibxlFmt", "a saved Xen domain", XEN),
    start(b"\xff\xff\xff\xff\xff\xff\xff\xffXENF", "a saved Xen domain", XEN),
    // Magic 0x0710_1984 with the architecture, after a version that varies.
    at(2, b"\x64\x86\x84\x19\x10\x07", "the state file of a Firecracker snapshot", FIRECRACKER),
    at(2, b"\xaa\xaa\x84\x19\x10\x07", "the state file of a Firecracker snapshot", FIRECRACKER),
    // Hibernated systems.
    start(b"HIBR", "a Windows hibernation file", WINDOWS),
    start(b"hibr", "a Windows hibernation file", WINDOWS),
    start(b"WAKE", "a Windows hibernation file", WINDOWS),
    start(b"wake", "a Windows hibernation file", WINDOWS),
    start(b"RSTR", "a Windows hibernation file", WINDOWS),
    at(0xff6, b"S1SUSPEND\0", "a hibernated Linux in a swap area", HIBERNATION),
    at(0xff6, b"S2SUSPEND\0", "a hibernated Linux in a swap area", HIBERNATION),
    at(0xff6, b"ULSUSPEND\0", "a hibernated Linux in a swap area", HIBERNATION),
    at(0xff6, b"LINHIB0001", "a hibernated Linux in a swap area", HIBERNATION),
    at(0xff6, b"SWAPSPACE2", "a swap area", DISK),
    // Checkpointed processes: the two common magics, then those of older images.
    start(b"\x19\x43\x56\x54", "a CRIU image", CRIU),
    start(b"\x40\x59\x10\x55", "a CRIU image", CRIU),
    start(b"\x16\x31\x31\x58", "a CRIU image", CRIU),
    start(b"\x25\x40\x08\x56", "a CRIU image", CRIU),
    start(b"\x47\x38\x05\x55", "a CRIU image", CRIU),
    start(b"\x20\x28\x49\x57", "a CRIU image", CRIU),
    // Compressed and packed files.
    start(b"\x28\xb5\x2f\xfd", "a zstd file", UNPACK),
    start(b"\x1f\x8b\x08", "a gzip file", UNPACK),
    start(b"\xfd7zXZ\0", "an xz file", UNPACK),
    start(b"\x04\x22\x4d\x18", "an lz4 file", UNPACK),
    start(b"\x02\x21\x4c\x18", "an lz4 file", UNPACK),
    start(b"\x03\x21\x4c\x18", "an lz4 file", UNPACK),
    start(b"\xff\x06\x00\x00sNaPpY", "a snappy file", UNPACK),
    start(b"LZIP\x01", "an lzip file", UNPACK),
    start(b"\x89LZO\0\r\n\x1a\n", "an lzop file", UNPACK),
    start(b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    start(b"PK\x03\x04", "a zip archive", UNPACK),
    start(b"Rar!\x1a\x07", "a rar archive", UNPACK),
    start(b"070701", "a cpio archive", UNPACK),
    start(b"070702", "a cpio archive", UNPACK),
    start(b"!<arch>\n", "an ar archive", UNPACK),
    at(257, b"ustar", "a tar archive", UNPACK),
    // Disks and file systems.
    start(b"QFI\xfb", "a qcow2 disk", DISK),
    start(b"QED\0", "a QED disk", DISK),
    start(b"KDMV", "a VMDK disk", DISK),
    start(b"COWD", "a VMDK disk", DISK),
    start(b"# Disk DescriptorFile", "a VMDK disk", DISK),
    at(0x40, b"\x7f\x10\xda\xbe", "a VDI disk", DISK),
    start(b"vhdxfile", "a VHDX disk", DISK),
    start(b"conectix", "a VHD disk", DISK),
    start(b"WithoutFreeSpace", "a Parallels disk", DISK),
    start(b"WithouFreSpacExt", "a Parallels disk", DISK),
    start(b"LUKS\xba\xbe", "an encrypted disk (LUKS)", DISK),
    start(b"hsqs", "a squashfs file system", DISK),
    start(b"\x45\x3d\xcd\x28", "a cramfs file system", DISK),
    start(b"XFSB", "an XFS file system", DISK),
    at(0x400, b"\xe2\xe1\xf5\xe0", "an EROFS file system", DISK),
    at(0x200, b"EFI PART", "a disk with a partition table", DISK),
    at(0x8001, b"CD001", "an ISO 9660 file system", DISK),
    at(0x1_0040, b"_BHRfS_M", "a btrfs file system", DISK),
    // Other files that are often stored beside a guest.
    at(0x202, b"HdrS", "a Linux kernel to boot", KERNEL),
    start(b"KSCOPE\r\n", "a Kaleidoscope color map", MAP),
    start(b"KCLONE\r\n", "a Kaleidoscope clone descriptor", OWN),
    start(b"KREC\x1a\r\n\n", "a Kaleidoscope recording", OWN),
];

/// A file that starts with this many bytes of text is a text file.
const TEXT_BYTES: usize = 512;

/// The error for a known format that cannot be read, from the file's first bytes.
pub(super) fn unsupported(file: &[u8]) -> Option<ImageError> {
    let has = |s: &&Signature| file.get(s.at..).is_some_and(|file| file.starts_with(s.magic));
    let known = SIGNATURES.iter().find(has).map(|s| (s.format, s.advice));
    let (format, advice) = known.or_else(|| by_structure(file))?;
    Some(ImageError::Unsupported { format, advice })
}

/// Formats without a magic of sufficient length.
fn by_structure(file: &[u8]) -> Option<(&'static str, &'static str)> {
    let is_bzip2 = file.starts_with(b"BZh")
        && file.get(3).is_some_and(u8::is_ascii_digit)
        // The first block, or the end of an empty file.
        && file.get(4..10).is_some_and(|b| b == b"1AY&SY" || b == b"\x17\x72\x45\x38\x50\x90");
    if is_bzip2 {
        return Some(("a bzip2 file", UNPACK));
    }
    // A skippable frame, which has 16 possible magics, may come first.
    let is_skippable = file.get(1..4) == Some(b"\x2a\x4d\x18")
        && file.first().is_some_and(|first| first & 0xf0 == 0x50);
    if is_skippable {
        return Some(("a zstd or lz4 file", UNPACK));
    }
    if is_ext4(file) {
        return Some(("an ext4 file system", DISK));
    }
    let text = file.trim_ascii_start();
    let inside = text.strip_prefix(b"{").map(<[u8]>::trim_ascii_start);
    if inside.is_some_and(|inside| inside.starts_with(b"\"")) {
        return Some(("a JSON file", SNAPSHOT_TEXT));
    }
    let start = file.get(..TEXT_BYTES).unwrap_or(file);
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    start.iter().all(is_text).then_some(("a text file", TEXT))
}

/// The superblock of ext2, ext3 and ext4 at 0x400. The magic has only two bytes, so other fields
/// are checked as well.
fn is_ext4(file: &[u8]) -> bool {
    let half = |at: usize| {
        let bytes = file.get(at..)?.first_chunk()?;
        Some(u16::from_le_bytes(*bytes))
    };
    let is_zero_or = |at: usize, most: u16| {
        half(at).is_some_and(|low| low <= most) && half(at.saturating_add(2)) == Some(0)
    };
    // s_magic, s_state, s_log_block_size, s_rev_level
    half(0x438) == Some(0xef53)
        && half(0x43a).is_some_and(|state| state <= 7)
        && is_zero_or(0x418, 6)
        && is_zero_or(0x44c, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Format, MemoryImage, RawLayout};

    /// A file of 80 KiB that is neither text nor of a known format, with `magic` at `at`.
    fn with(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut file = vec![0xa5; 0x1_4000];
        file[at..][..magic.len()].copy_from_slice(magic);
        file
    }

    fn message(file: Vec<u8>) -> String {
        MemoryImage::from_bytes(file, &Format::Auto).unwrap_err().to_string()
    }

    #[test]
    fn each_format_is_named_with_what_to_do() {
        for Signature { at, magic, format, advice } in SIGNATURES {
            assert!(magic.len() >= 3, "{format}: shorter magics are in RAM by chance");
            let message = message(with(*at, magic));
            assert!(message.contains(format) && message.contains(advice), "{message}");
            // If the caller says that the file is raw, it is read as raw.
            let raw = Format::Raw(RawLayout::Contiguous);
            assert!(MemoryImage::from_bytes(with(*at, magic), &raw).is_ok());
        }
        assert!(message(with(0, b"KDUMP   ")).contains("dump-guest-memory FILE"));
    }

    #[test]
    fn formats_without_a_long_magic_are_named() {
        assert!(message(with(0, b"BZh91AY&SY")).contains("a bzip2 file; unpack it first"));
        assert!(message(with(0, b"BZh9\x17\x72\x45\x38\x50\x90")).contains("a bzip2 file"));
        assert!(message(with(0, b"\x5e\x2a\x4d\x18")).contains("a zstd or lz4 file"));
        assert!(message(with(0, b"{\"snapshots\":{}}")).contains("memory-ranges"));
        assert!(message(with(0, b"\n{\n  \"id\": 1")).contains("a JSON file"));
        let mut disk = with(0x438, b"\x53\xef\x01\x00");
        disk[0x418..0x41c].copy_from_slice(&[2, 0, 0, 0]);
        disk[0x44c..0x450].copy_from_slice(&[1, 0, 0, 0]);
        assert!(message(disk).contains("an ext4 file system"));
        assert!(message(b"<domain type='kvm'>\n".repeat(4096)).contains("a text file"));
        assert!(message(b"[machine]\nram=1\n".to_vec()).contains("a text file"));
    }

    #[test]
    fn ram_is_not_taken_for_a_file() {
        // Real-mode interrupt vectors, zeros, page tables, a short text, a magic at another place.
        let entries: Vec<u8> = (0..512u64).flat_map(|i| (i << 12 | 0x63).to_le_bytes()).collect();
        let starts = [b"\x53\xff\x00\xf0".repeat(256), vec![0; 4096], entries];
        let starts = starts.into_iter().chain([b"OSRELEASE=6.1\n\0".to_vec(), b"BZh9".to_vec()]);
        for start in starts.chain([b"\0KDUMP   ".to_vec(), b"{\0\"".to_vec()]) {
            let mut file = vec![0; 0x2000];
            file[..start.len()].copy_from_slice(&start);
            assert!(MemoryImage::from_bytes(file, &Format::Auto).is_ok(), "{start:x?}");
        }
    }
}
