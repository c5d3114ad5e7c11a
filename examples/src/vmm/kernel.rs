//! Loads a kernel, its boot parameters, command line and initramfs into memory.

use super::platform::{ADAPTERS, tables};
use super::{Software, block};
use crate::vm::Outcome;
use kaleidoscope_core::addr::{FRAME_BYTES, FRAME_SIZE, Gpa};
use kaleidoscope_core::memory::MemoryLayout;
use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Elf, KernelLoader, load_cmdline};
use std::fs::File;
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const PARAMETERS_AT: u64 = 0x7000;
const COMMAND_LINE_AT: u64 = 0x2_0000;
const MAX_COMMAND_LINE: usize = 2048;
const HIGH: GuestAddress = GuestAddress(ADAPTERS.end);

/// Offset of a bzImage's 64-bit entry point from its load address.
const ENTRY_64: u64 = 0x200;

/// The e820 type of usable RAM.
const RAM: u32 = 1;

/// Values of the boot protocol: unknown boot loader, and its two magic numbers (Linux
/// `Documentation/arch/x86/boot.rst`).
const UNKNOWN_LOADER: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER: u32 = 0x5372_6448;

/// Memory with a loaded kernel, and its entry point.
pub(super) struct Boot {
    memory: GuestMemoryMmap,
    pub(super) entry: u64,
    /// Guest-physical address of the boot parameters.
    pub(super) parameters: u64,
}

impl Boot {
    /// Calls `take` with each page that is not zero.
    pub(super) fn memory(&self, take: &mut dyn FnMut(Gpa, &[u8]) -> Outcome<()>) -> Outcome<()> {
        let mut page = [0; FRAME_BYTES];
        for region in self.memory.iter() {
            for offset in (0..region.len()).step_by(FRAME_BYTES) {
                let at = region.start_addr().0 + offset;
                self.memory.read_slice(&mut page, GuestAddress(at))?;
                if page != [0; FRAME_BYTES] {
                    take(Gpa(at), &page)?;
                }
            }
        }
        Ok(())
    }
}

/// Loads a kernel and its data into memory of this layout.
pub(super) fn load(software: &Software<'_>, layout: &MemoryLayout) -> Outcome<Boot> {
    let ranges: Vec<_> = regions(layout)
        .map(|region| Ok((GuestAddress(region.start), usize::try_from(region.end - region.start)?)))
        .collect::<Outcome<_>>()?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges)?;
    let path = software.kernel;
    let mut file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (kernel, entry) = match Elf::load(&memory, None, &mut file, Some(HIGH)) {
        Ok(kernel) => {
            let entry = kernel.kernel_load.0;
            (kernel, entry)
        }
        Err(no_elf) => {
            let kernel = BzImage::load(&memory, None, &mut file, Some(HIGH));
            let kernel = kernel.map_err(|no_bzimage| {
                format!(
                    "{}: neither a vmlinux ({no_elf}) nor a bzImage ({no_bzimage})",
                    path.display()
                )
            })?;
            let entry = kernel.kernel_load.0 + ENTRY_64;
            (kernel, entry)
        }
    };
    for (gpa, bytes) in tables() {
        memory.write_slice(&bytes, GuestAddress(gpa.0))?;
    }
    let mut command_line = Cmdline::new(MAX_COMMAND_LINE)?;
    command_line.insert_str(software.words)?;
    if software.disk.is_some() {
        // A guest without ACPI learns of a virtio MMIO device from its command line only.
        let (size, at) = (block::REGISTERS.end - block::REGISTERS.start, block::REGISTERS.start);
        command_line.insert_str(format!("virtio_mmio.device={size:#x}@{at:#x}:{}", block::LINE))?;
    }
    load_cmdline(&memory, GuestAddress(COMMAND_LINE_AT), &command_line)?;

    let mut parameters =
        boot_params { hdr: kernel.setup_header.unwrap_or_default(), ..Default::default() };
    parameters.hdr.type_of_loader = UNKNOWN_LOADER;
    parameters.hdr.boot_flag = BOOT_FLAG;
    parameters.hdr.header = HEADER;
    parameters.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE_AT)?;
    parameters.hdr.cmdline_size =
        u32::try_from(command_line.as_cstring()?.as_bytes_with_nul().len())?;
    if !software.initramfs.is_empty() {
        let header = &parameters.hdr;
        let needed = header.pref_address.saturating_add(header.init_size.into());
        let last = u64::from(header.initrd_addr_max);
        let room = kernel.kernel_end.max(needed)..if last == 0 { 1 << 32 } else { last + 1 };
        let at = initramfs(software.initramfs, room, layout, &memory)?;
        parameters.hdr.ramdisk_image = u32::try_from(at)?;
        parameters.hdr.ramdisk_size = u32::try_from(software.initramfs.len())?;
    }
    for (entry, region) in parameters.e820_table.iter_mut().zip(regions(layout)) {
        let size = region.end - region.start;
        *entry = boot_e820_entry { addr: region.start, size, r#type: RAM };
        parameters.e820_entries += 1;
    }
    let parameters = BootParams::new(&parameters, GuestAddress(PARAMETERS_AT));
    LinuxBootConfigurator::write_bootparams(&parameters, &memory)?;
    Ok(Boot { memory, entry, parameters: PARAMETERS_AT })
}

/// Guest-physical ranges of RAM, in bytes.
fn regions(layout: &MemoryLayout) -> impl Iterator<Item = Range<u64>> + '_ {
    layout.regions().iter().map(|region| {
        let start = region.start.0 * FRAME_SIZE;
        start..start + u64::from(region.frames) * FRAME_SIZE
    })
}

/// Loads the initramfs at the highest address within `room` and RAM below 4 GiB. Returns the
/// address.
fn initramfs(
    archive: &[u8],
    room: Range<u64>,
    layout: &MemoryLayout,
    memory: &GuestMemoryMmap,
) -> Outcome<u64> {
    let low = regions(layout).filter(|region| region.start < 1 << 32);
    let end = low.map(|region| region.end).max().unwrap_or(0).min(room.end);
    let at = end.checked_sub(u64::try_from(archive.len())?).map(|at| at / FRAME_SIZE * FRAME_SIZE);
    let at = at
        .filter(|at| *at >= room.start)
        .ok_or("the guest's memory is too small for its initramfs")?;
    memory.write_slice(archive, GuestAddress(at))?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::super::platform::layout;
    use super::*;

    /// A bzImage with a kernel of a few bytes.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&BOOT_FLAG.to_le_bytes());
        image[0x202..0x206].copy_from_slice(&HEADER.to_le_bytes());
        image[0x206..0x208].copy_from_slice(&0x020c_u16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        image.extend_from_slice(b"a kernel");
        image
    }

    fn load_image(image: &[u8], initramfs: &[u8], mib: u32) -> Outcome<Boot> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), image)?;
        let software =
            Software { kernel: file.path(), initramfs, words: "console=ttyS0 quiet", disk: None };
        load(&software, &layout(mib)?)
    }

    #[test]
    fn a_kernel_and_what_it_needs_are_in_memory() {
        let boot = load_image(&image(), b"an archive", 8).unwrap();
        assert_eq!((boot.entry, boot.parameters), (0x10_0200, PARAMETERS_AT));
        let mut pages = std::collections::BTreeMap::new();
        let mut take = |gpa: Gpa, bytes: &[u8]| {
            pages.insert(gpa.0, bytes.to_vec());
            Ok(())
        };
        boot.memory(&mut take).unwrap();
        assert!(pages[&0x10_0000].starts_with(b"a kernel"));
        assert!(pages[&COMMAND_LINE_AT].starts_with(b"console=ttyS0 quiet\0"));
        assert!(pages[&0x7f_f000].starts_with(b"an archive"), "at the end of memory");
        let parameters = &pages[&PARAMETERS_AT];
        // Offsets in the boot parameters: address and size of the initramfs, number of e820
        // entries.
        let word = |at: usize| u32::from_le_bytes(parameters[at..at + 4].try_into().unwrap());
        assert_eq!((word(0x218), word(0x21c), parameters[0x1e8]), (0x7f_f000, 10, 2));
    }

    #[test]
    fn invalid_kernels_and_large_initramfs_are_refused() {
        let why = |result: Outcome<Boot>| result.err().unwrap().to_string();
        for garbage in [&b""[..], b"MZ", &[0x7f; 5000], b"\x7fELF\x02\x01\x01 and no more"] {
            assert!(why(load_image(garbage, b"", 8)).contains("neither a vmlinux"));
        }
        let large = vec![1; 8 << 20];
        assert!(why(load_image(&image(), &large, 8)).contains("too small for its initramfs"));
        let mut truncated = image();
        truncated.truncate(600);
        assert!(load_image(&truncated, b"", 8).is_err());
    }
}
