//! A memory image that is to be colored.

use super::LayoutArgs;
use crate::analysis::registers;
use crate::failure::Failure;
use crate::outfile::Files;
use kaleidoscope_core::image::MemoryImage;
use kaleidoscope_core::registers::VcpuRegisters;
use std::path::{Path, PathBuf};

/// A memory image, and what is known of it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// Memory image: raw, ELF core, or a VMM's memory file
    image: PathBuf,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Registers of the vCPUs, as `info registers -a` of QEMU's monitor prints them
    #[arg(long, value_name = "FILE")]
    regs: Option<PathBuf>,
}

impl ImageArgs {
    /// Where the image is.
    pub(crate) fn path(&self) -> &Path {
        &self.image
    }

    /// What is read.
    pub(crate) fn inputs(&self) -> Files {
        Files::new().reads([&self.image]).reads(self.layout.inputs()).reads(&self.regs)
    }

    /// Opens the image.
    pub(crate) fn open(&self) -> Result<MemoryImage, Failure> {
        self.layout.open(&self.image)
    }

    /// The vCPUs' registers, if any are known.
    pub(crate) fn registers(&self, image: &MemoryImage) -> Result<Vec<VcpuRegisters>, Failure> {
        registers(image, self.regs.as_deref())
    }
}
