//! `kaleidoscope color`: colors an image.

use crate::analysis::{LayoutArgs, color_image, registers};
use crate::failure::Failure;
use crate::outfile::{Files, Output};
use crate::outputs::{OutputArgs, View};
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::manifest::{ImageIdentity, Limits, Manifest};
use kaleidoscope_core::memory::GuestMemory;
use std::path::PathBuf;

/// Find out what every frame of a memory image is.
///
/// The image is all that is needed: no symbols, no profile, no registers. Prints a table of colors;
/// writes what it is asked to.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope color ram.bin
      table of colors of a raw image without holes
  kaleidoscope color ram.bin --layout layout.txt --regs regs.txt -o guest.kscope --png guest.png
      with the machine's memory layout and registers; keeps the map in a file and draws it
  kaleidoscope color mem.snap --format firecracker --files
      which files a Firecracker guest has in its page cache
  kaleidoscope color ram.bin --json | jq '.colors[] | select(.color == \"free\")'
      for programs")]
pub(crate) struct Args {
    /// Memory image: raw, ELF core, or a VMM's memory file
    image: PathBuf,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Registers of the vCPUs, as `info registers -a` of QEMU's monitor prints them
    #[arg(long, value_name = "FILE")]
    regs: Option<PathBuf>,
    /// List the guest's processes with their memory
    #[arg(long)]
    processes: bool,
    /// Keep the map in a file, for `kaleidoscope map` and other programs
    #[arg(short, long, value_name = "FILE.kscope")]
    output: Option<PathBuf>,
    /// Color file pages that processes map as page cache, not as the processes' code or data
    #[arg(long)]
    cache_wins: bool,
    #[command(flatten)]
    outputs: OutputArgs,
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        let reads = Files::new().reads([&self.image]).reads(self.layout.inputs()).reads(&self.regs);
        reads.writes(&self.output).writes(self.outputs.paths())
    }

    /// Colors the image.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let image = self.layout.open(&self.image)?;
        if let Some(path) = &self.output {
            // Said before the work, not after it.
            let fits = Limits::default().admit_frames(image.layout().frames());
            fits.map_err(|e| {
                Failure::at(path, e)
                    .hint("leave out --output: the table, --png and --frames have no such limit")
            })?;
        }
        let output = self.output.as_deref().map(Output::lasting).transpose()?;
        let files = self.outputs.create()?;
        let rules = if self.cache_wins { Rules::page_cache_wins() } else { Rules::default() };
        let registers = registers(&image, self.regs.as_deref())?;
        let analysis = color_image(&image, registers, rules)?;
        let map = &analysis.coloring.map;
        if let Some(output) = output {
            let identity =
                ImageIdentity::of(&image, map).map_err(|e| Failure::at(&self.image, e))?;
            let mut manifest = Manifest::new(map.clone(), identity);
            manifest.notes.clone_from(&analysis.notes);
            let bytes = manifest.to_bytes().map_err(|e| Failure::at(output.path(), e))?;
            output.write(|out| out.write_all(&bytes))?;
        }
        let view = View {
            map,
            notes: &analysis.notes,
            stages: &analysis.stages,
            processes: self.processes.then(|| analysis.coloring.processes()),
        };
        self.outputs.emit(files, &view)
    }
}
