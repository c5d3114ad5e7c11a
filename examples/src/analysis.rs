//! From the command line's arguments to an image, and from an image to its colors.

use crate::failure::Failure;
use clap::ValueEnum;
use kaleidoscope_core::color::{ColorMap, Frame};
use kaleidoscope_core::image::{Format, ImageError, LayoutFile, MemoryImage, Preset, RawLayout};
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::{VcpuRegisters, parse_qemu_text};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How an image file is laid out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum ImageFormat {
    /// Known by its first bytes; raw if nothing is recognized
    Auto,
    /// RAM from address 0 on, without holes
    Raw,
    /// ELF core: QEMU's dump-guest-memory, kdump
    Elf,
    /// Firecracker's memory file
    Firecracker,
    /// Raw RAM of a QEMU q35 machine
    QemuQ35,
    /// Raw RAM of a QEMU pc (i440FX) machine
    QemuPc,
    /// Memory file of a cloud-hypervisor snapshot
    CloudHypervisor,
}

/// Where a guest's memory is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LayoutArgs {
    /// Where the file's bytes belong: lines of file offset, guest-physical address and size
    #[arg(long, value_name = "FILE")]
    pub(crate) layout: Option<PathBuf>,
    /// Format of the image
    #[arg(long, value_enum, default_value_t = ImageFormat::Auto, conflicts_with = "layout")]
    pub(crate) format: ImageFormat,
}

impl LayoutArgs {
    /// Opens the image at `path`.
    pub(crate) fn open(&self, path: &Path) -> Result<MemoryImage, Failure> {
        let raw = |preset| Format::Raw(RawLayout::Preset(preset));
        let format = match (&self.layout, self.format) {
            (Some(layout), _) => {
                let layout = LayoutFile::open(layout).map_err(|e| Failure::at(layout, e))?;
                Format::Raw(RawLayout::File(layout))
            }
            (None, ImageFormat::Auto | ImageFormat::Elf) => Format::Auto,
            (None, ImageFormat::Raw) => Format::Raw(RawLayout::Contiguous),
            (None, ImageFormat::Firecracker) => raw(Preset::Firecracker),
            (None, ImageFormat::QemuQ35) => raw(Preset::QemuQ35),
            (None, ImageFormat::QemuPc) => raw(Preset::QemuPc),
            (None, ImageFormat::CloudHypervisor) => raw(Preset::CloudHypervisor),
        };
        MemoryImage::open(path, &format).map_err(|error| {
            let needs_layout = matches!(error, ImageError::LayoutNeeded { .. });
            let names_file = matches!(error, ImageError::Io { .. });
            let failure =
                if names_file { Failure::new(error) } else { Failure::at(path, error) };
            if needs_layout {
                failure.hint("say which machine wrote it (--format qemu-q35, for example), or give --layout FILE")
            } else {
                failure
            }
        })
    }
}

/// Reads the registers that `info registers -a` of QEMU's monitor printed.
pub(crate) fn read_registers(path: &Path) -> Result<Vec<VcpuRegisters>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::at(path, e))?;
    parse_qemu_text(&text).map_err(|e| {
        let hint = "--regs takes the output of `info registers -a` of QEMU's monitor; coloring also works without";
        Failure::at(path, e).hint(hint)
    })
}

/// How to color.
#[derive(Clone, Debug, Default)]
#[expect(dead_code, reason = "read by the coloring itself")]
pub(crate) struct Options {
    /// Registers of the vCPUs; empty when unknown.
    pub(crate) registers: Vec<VcpuRegisters>,
    /// Whether a file page that processes map counts as page cache rather than as their code or data.
    pub(crate) cache_wins: bool,
}

/// Colors an image.
pub(crate) fn color(memory: &dyn GuestMemory, options: &Options) -> Result<Coloring, Failure> {
    let _ = (memory, options);
    Err(Failure::new("this build cannot color images"))
}

/// What is known of a guest.
#[derive(Debug)]
pub(crate) struct Coloring {
    /// What every frame is.
    pub(crate) map: ColorMap,
    /// How it went.
    pub(crate) report: Report,
}

/// How a coloring went.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// What was cut or damaged, one sentence each.
    pub(crate) notes: Vec<String>,
    /// The stages and how long each took.
    pub(crate) stages: Vec<(&'static str, Duration)>,
}

/// A process of the guest.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// Process id in the guest's initial namespace.
    pub(crate) pid: u32,
    /// The name that the kernel has of it, at most 15 bytes.
    pub(crate) name: String,
    /// Frames of anonymous memory that it maps.
    pub(crate) anonymous_frames: u32,
    /// Frames of files that it maps.
    pub(crate) mapped_frames: u32,
    /// Frames of its page tables.
    pub(crate) page_table_frames: u32,
    /// Whether it is one of those that ran last.
    pub(crate) recent: bool,
}

/// Why a frame has its color.
#[derive(Clone, Debug)]
pub(crate) struct Explanation {
    /// Everything that was observed of the frame: what, and the observation.
    pub(crate) facts: Vec<(String, String)>,
    /// The rule that decided.
    pub(crate) rule: String,
    /// The result.
    pub(crate) frame: Frame,
}

impl Coloring {
    /// The guest's processes.
    pub(crate) fn processes(&self) -> &[Process] {
        &[]
    }

    /// Why a frame has its color; `None` when it is not RAM.
    pub(crate) fn explain(&self, gfn: kaleidoscope_core::addr::Gfn) -> Option<Explanation> {
        let frame = self.map.frame(self.map.layout().index_of(gfn)?)?;
        Some(Explanation { facts: Vec::new(), rule: String::new(), frame })
    }
}
