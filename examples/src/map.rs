//! `kaleidoscope map`: shows a color map that was kept in a file.

use crate::args::LayoutArgs;
use crate::failure::Failure;
use crate::map_output::outputs::{OutputArgs, View};
use crate::outfile::Files;
use kaleidoscope_core::manifest::{Limits, Manifest, ManifestError};
use std::path::{Path, PathBuf};

/// Show a color map that `kaleidoscope color -o` wrote.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope map guest.kscope
      the table that `kaleidoscope color` printed
  kaleidoscope map guest.kscope --plot guest.png --files
      draw the map, list cached files
  kaleidoscope map guest.kscope --verify ram.bin
      check first that the map belongs to this image")]
pub(crate) struct Args {
    /// Map that was kept
    #[arg(value_name = "FILE.kscope")]
    manifest: PathBuf,
    /// Check that the map was made from this image
    #[arg(long, value_name = "IMAGE")]
    verify: Option<PathBuf>,
    #[command(flatten)]
    layout: LayoutArgs,
    #[command(flatten)]
    outputs: OutputArgs,
}

impl Args {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        let reads = Files::new().reads([&self.manifest]).reads(&self.verify);
        reads.reads(self.layout.inputs()).writes(self.outputs.paths())
    }

    /// Reads and shows the map.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let path = &self.manifest;
        let manifest = Manifest::read_file(path, &Limits::default());
        let mut manifest = manifest.map_err(|error| explained(path, &error))?;
        if let Some(image) = &self.verify {
            let memory = self.layout.open(image)?;
            manifest.verify(&memory).map_err(|e| {
                Failure::at(image, e)
                    .hint("color this image again: a map says nothing about another snapshot")
                    .finding()
            })?;
        }
        let view =
            View { map: &manifest.map, notes: &manifest.notes, stages: &[], processes: None };
        self.outputs.emit(self.outputs.create()?, &view)
    }
}

/// What is wrong with a manifest, and what to do about it.
pub(crate) fn explained(path: &Path, error: &ManifestError) -> Failure {
    let failure = Failure::at(path, error);
    if matches!(error, ManifestError::Io(_)) {
        failure
    } else if matches!(error, ManifestError::Magic { .. }) {
        failure.hint("`kaleidoscope color IMAGE -o FILE.kscope` makes a map of an image")
    } else if matches!(error, ManifestError::Version { .. } | ManifestError::Flags { .. }) {
        failure.hint("read it with the version that wrote it, or color the image again")
    } else if matches!(error, ManifestError::Limit { .. }) {
        failure.hint("no version of `kaleidoscope color` writes such a file: color the image again")
    } else {
        failure.hint("copy the file again, or color the image again")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::ImageFormat;
    use crate::map_output::test_map;
    use kaleidoscope_core::manifest::ImageIdentity;
    use kaleidoscope_core::memory::VecMemory;

    /// The test map's guest, its image and its manifest, in a directory.
    fn guest() -> (tempfile::TempDir, Args) {
        let dir = tempfile::tempdir().unwrap();
        let map = test_map::small();
        let memory = VecMemory::zeroed(map.layout().clone());
        std::fs::write(dir.path().join("ram.bin"), memory.bytes()).unwrap();
        std::fs::write(
            dir.path().join("layout.txt"),
            "0x0 0x0 0x18000\n0x18000 0x100000 0x10000\n",
        )
        .unwrap();
        let identity = ImageIdentity::of(&memory, &map).unwrap();
        let manifest = dir.path().join("guest.kscope");
        Manifest::new(map, identity).write_file(&manifest).unwrap();
        let args = Args {
            manifest,
            verify: Some(dir.path().join("ram.bin")),
            layout: LayoutArgs {
                layout: Some(dir.path().join("layout.txt")),
                format: ImageFormat::Auto,
            },
            outputs: OutputArgs {
                files: true,
                plot: Some(dir.path().join("guest.png")),
                json: true,
                frames_to: Some(dir.path().join("frames.csv")),
                regions_to: Some(dir.path().join("regions.csv")),
            },
        };
        (dir, args)
    }

    #[test]
    fn a_map_is_verified_and_everything_written() {
        let (dir, args) = guest();
        args.run().unwrap();
        for (file, start) in [
            ("guest.png", b"\x89PNG".as_slice()),
            ("frames.csv", b"gfn,kind,color,region,position\n0,unknown,unknown,,\n"),
            ("regions.csv", b"region,kind,name,frames\n0,file,"),
        ] {
            assert!(std::fs::read(dir.path().join(file)).unwrap().starts_with(start), "{file}");
        }
    }

    #[test]
    fn failures_have_hints() {
        let (dir, args) = guest();
        std::fs::write(dir.path().join("ram.bin"), [1; 40 * 4096]).unwrap();
        let failure = args.run().unwrap_err().to_string();
        assert!(failure.contains("not the one that was colored"), "{failure}");
        assert!(failure.contains("hint: color this image again"), "{failure}");

        std::fs::write(&args.manifest, "hello").unwrap();
        let failure = args.run().unwrap_err().to_string();
        assert!(failure.contains("hint: `kaleidoscope color"), "{failure}");

        std::fs::remove_file(&args.manifest).unwrap();
        let failure = args.run().unwrap_err().to_string();
        assert!(failure.contains("guest.kscope: No such file"), "{failure}");
        assert!(!failure.contains("hint"), "{failure}");
    }
}
