//! `kaleidoscope color`: colors an image.

use crate::analysis::color_image_with;
use crate::args::{ColoringArgs, ImageArgs, RuleArgs};
use crate::failure::Failure;
use crate::map_output::outputs::{OutputArgs, View};
use crate::outfile::{Files, Output};
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
  kaleidoscope color ram.bin --layout layout.txt --regs regs.txt -o guest.kscope --plot guest.png
      with the machine's memory layout and registers; keeps the map in a file and draws it
  kaleidoscope color mem.snap --format firecracker --files
      which files a Firecracker guest has in its page cache
  kaleidoscope color ram.bin --regs regs.txt --page-tables
      a guest whose kernel is not known, by the page tables of its vCPUs
  kaleidoscope color ram.bin --json | jq '.colors[] | select(.color == \"free\")'
      for programs")]
pub(crate) struct Args {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    coloring: ColoringArgs,
    #[command(flatten)]
    rules: RuleArgs,
    /// List the guest's processes with their memory
    #[arg(long)]
    processes: bool,
    /// Keep the map in a file, for `kaleidoscope map` and other programs
    #[arg(short, long, value_name = "FILE.kscope")]
    output: Option<PathBuf>,
    #[command(flatten)]
    outputs: OutputArgs,
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        self.image.inputs().writes(&self.output).writes(self.outputs.paths())
    }

    /// Colors the image.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let image = self.image.open()?;
        if let Some(path) = &self.output {
            // Said before the work, not after it.
            let fits = Limits::default().admit_frames(image.layout().frames());
            fits.map_err(|e| {
                Failure::at(path, e).hint(
                    "leave out --output: the table, --plot and --frames-to have no such limit",
                )
            })?;
        }
        let output = self.output.as_deref().map(Output::lasting).transpose()?;
        let files = self.outputs.create()?;
        let registers = self.image.registers(&image)?;
        let analysis = color_image_with(self.coloring, &image, registers, self.rules.rules())?;
        let map = &analysis.coloring.map;
        if let Some(output) = output {
            let identity =
                ImageIdentity::of(&image, map).map_err(|e| Failure::at(self.image.path(), e))?;
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
