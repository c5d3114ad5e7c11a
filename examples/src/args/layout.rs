//! Where the bytes of an image file belong.

use crate::failure::Failure;
use clap::ValueEnum;
use kaleidoscope_core::addr::FRAME_SIZE;
use kaleidoscope_core::image::{Format, ImageError, LayoutFile, MemoryImage, Preset, RawLayout};
use kaleidoscope_core::memory::MemoryLayout;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// How an image file is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ImageFormat {
    /// Known by its first bytes; raw if nothing is recognized
    Auto,
    /// RAM from address 0 on, without holes
    Raw,
    /// ELF core: QEMU's dump-guest-memory, kdump
    Elf,
    /// Firecracker's memory file, 1.13 and later
    Firecracker,
    /// Firecracker's memory file, until 1.12
    #[value(name = "firecracker-1.12")]
    Firecracker112,
    /// Raw RAM of a QEMU q35 machine
    QemuQ35,
    /// Raw RAM of a QEMU pc (i440FX) machine
    QemuPc,
    /// Raw RAM of a QEMU microvm
    QemuMicrovm,
    /// Memory file of a cloud-hypervisor snapshot
    CloudHypervisor,
}

/// Where a guest's memory is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LayoutArgs {
    /// Where the bytes belong: lines of file offset, guest-physical address, size, and the name of
    /// a further file
    #[arg(long, value_name = "FILE")]
    pub(crate) layout: Option<PathBuf>,
    /// Format of the image
    #[arg(long, value_enum, default_value_t = ImageFormat::Auto, conflicts_with = "layout")]
    pub(crate) format: ImageFormat,
}

impl LayoutArgs {
    /// What is read beside images.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &PathBuf> {
        self.layout.iter()
    }

    /// Opens the image at `path`.
    pub(crate) fn open(&self, path: &Path) -> Result<MemoryImage, Failure> {
        let raw = |preset| Format::Raw(RawLayout::Preset(preset));
        let format = match (&self.layout, self.format) {
            (Some(layout), _) => {
                let layout = LayoutFile::open(layout).map_err(|e| {
                    Failure::at(layout, e).hint(
                        "--layout takes lines like `0x0 0x0 0x80000000`: file offset, guest-physical address and size, each in hexadecimal",
                    )
                })?;
                Format::Raw(RawLayout::File(layout))
            }
            (None, ImageFormat::Auto) => Format::Auto,
            (None, ImageFormat::Elf) => Format::Elf,
            (None, ImageFormat::Raw) => Format::Raw(RawLayout::Contiguous),
            (None, ImageFormat::Firecracker) => raw(Preset::Firecracker),
            (None, ImageFormat::Firecracker112) => raw(Preset::Firecracker1_12),
            (None, ImageFormat::QemuMicrovm) => raw(Preset::QemuMicrovm),
            (None, ImageFormat::QemuQ35) => raw(Preset::QemuQ35),
            (None, ImageFormat::QemuPc) => raw(Preset::QemuPc),
            (None, ImageFormat::CloudHypervisor) => raw(Preset::CloudHypervisor),
        };
        MemoryImage::open(path, &format).map_err(|error| {
            let needs_layout = matches!(error, ImageError::LayoutNeeded { .. });
            let is_known = matches!(error, ImageError::Unsupported { .. });
            let names_file =
                matches!(error, ImageError::Io { .. } | ImageError::Special { .. } | ImageError::Changed(_));
            let failure =
                if names_file { Failure::new(error) } else { Failure::at(path, error) };
            if needs_layout {
                failure.hint("say which machine wrote it (--format qemu-q35, for example), or give --layout FILE")
            } else if is_known {
                failure.hint("if the file is RAM all the same, --format raw takes it as such")
            } else {
                failure.maybe_hint(of_folder(path))
            }
        })
    }
}

/// What to name instead of a folder.
fn of_folder(path: &Path) -> Option<String> {
    let image = path.join("ram.bin");
    if image.is_file() {
        let words = |(option, name)| {
            let beside = path.join(name);
            beside.is_file().then(|| format!(" {option} {}", beside.display()))
        };
        let beside = [("--layout", "layout.txt"), ("--regs", "regs.txt")].map(words);
        let beside: String = beside.into_iter().flatten().collect();
        return Some(format!("the image in this folder is {}{beside}", image.display()));
    }
    path.is_dir().then(|| "this is a folder; an image is a file".to_owned())
}

/// Lines of file offset, guest-physical address and size, as `--layout` takes them.
pub(crate) fn layout_text(layout: &MemoryLayout) -> String {
    let mut out = String::from("# file_offset gpa size\n");
    for region in layout.regions() {
        let offset = u64::from(region.first_index.0) * FRAME_SIZE;
        let bytes = u64::from(region.frames) * FRAME_SIZE;
        let _ = writeln!(out, "{offset:#x} {:#x} {bytes:#x}", region.start.gpa().0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use kaleidoscope_core::addr::Gpa;

    #[test]
    fn the_layout_can_be_read() {
        let ram = MemoryLayout::new(&[(Gpa(0), 0x3000), (Gpa(1 << 32), 0x2000)]).unwrap();
        let file: LayoutFile = layout_text(&ram).parse().unwrap();
        let segments: Vec<_> = file.segments().map(|s| (s.file_offset, s.gpa.0, s.bytes)).collect();
        assert_eq!(segments, [(0, 0, 0x3000), (0x3000, 1 << 32, 0x2000)]);
    }
}
