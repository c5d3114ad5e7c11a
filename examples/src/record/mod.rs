//! `kaleidoscope record`: working sets of clones, kept for other clones, boots, kernels and builds.

mod show;

use crate::analysis::color_image_with;
use crate::args::{ColoringArgs, ImageArgs};
use crate::failure::Failure;
use crate::outfile::{Files, Output, create_if};
use crate::stdio::print;
use kaleidoscope_core::coloring::Rules;
use kaleidoscope_core::manifest::{ImageIdentity, ManifestError};
use kaleidoscope_core::prefetch::LocalityOrder;
use kaleidoscope_core::recording::{
    MergeError, Recording, RecordingError, RecordingLimits, Salt, TranslatedRecording,
};
use kaleidoscope_core::replay::{Trace, TraceError};
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};

/// Keep what clones touched, and find it again in another guest.
///
/// A recording names a touched frame by what it holds (page 3 of /usr/bin/python3), so that a
/// recording of one boot serves another boot, kernel or build.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  kaleidoscope record make ram.bin --trace run1.csv --trace run2.csv -o query.krec
      a recording of two runs of clones of one image
  kaleidoscope record merge query.krec other.krec -o both.krec
      more runs, also of other guests
  kaleidoscope record inspect query.krec
      what is in it
  kaleidoscope record translate query.krec new.bin --layout layout.txt -o frames.csv
      which frames of another image it speaks of")]
pub(crate) enum Command {
    Make(MakeArgs),
    Merge(MergeArgs),
    Inspect(InspectArgs),
    Translate(TranslateArgs),
}

/// Colors the image.
fn color(
    args: &ImageArgs,
    coloring: ColoringArgs,
) -> Result<(LocalityOrder, ImageIdentity), Failure> {
    let image = args.open()?;
    let registers = args.registers(&image)?;
    let map = color_image_with(coloring, &image, registers, Rules::default())?.coloring.map;
    let identity = ImageIdentity::of(&image, &map).map_err(|e| Failure::at(args.path(), e))?;
    Ok((LocalityOrder::new(map), identity))
}

/// Make a recording of traces of clones of one image; each trace is one run.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope record make ram.bin --layout layout.txt --trace run.csv -o query.krec
      one run
  kaleidoscope record make ram.bin --trace run1.csv --trace run2.csv -o query.krec --hash-paths
      two runs; names of files and processes are replaced by salted hashes

A trace is a CSV with columns t_us and gfn (hexadecimal), and perhaps event, access_write, vcpu.")]
pub(crate) struct MakeArgs {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    coloring: ColoringArgs,
    /// What a clone touched, in order; several times for several runs
    #[arg(long = "trace", value_name = "CSV", required = true, num_args = 1..)]
    traces: Vec<PathBuf>,
    /// Recording to write
    #[arg(short, long, value_name = "FILE.krec")]
    output: PathBuf,
    /// Replace names of files and processes by salted hashes, which hide only what cannot be
    /// guessed
    #[arg(long)]
    hash_paths: bool,
}

/// Merge recordings; every run counts alike.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope record merge monday.krec tuesday.krec -o both.krec
      frame numbers and kernel are those of the first recording")]
pub(crate) struct MergeArgs {
    /// Recordings to merge
    #[arg(value_name = "FILE.krec", required = true)]
    recordings: Vec<PathBuf>,
    /// Recording to write
    #[arg(short, long, value_name = "FILE.krec")]
    output: PathBuf,
}

/// Show what is in a recording.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope record inspect query.krec
      its colors, kinds and largest regions
  kaleidoscope record inspect query.krec --json | jq .colors
      for programs")]
pub(crate) struct InspectArgs {
    /// Recording
    #[arg(value_name = "FILE.krec")]
    recording: PathBuf,
    /// Regions to list, the largest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// Find the frames of an image that a recording speaks of.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope record translate query.krec new.bin --layout layout.txt --regs regs.txt
      how much of it was found, by color
  kaleidoscope record translate query.krec new.bin --layout layout.txt -o frames.csv
      the frames in recorded order: gfn,confidence,how")]
pub(crate) struct TranslateArgs {
    /// Recording
    #[arg(value_name = "FILE.krec")]
    recording: PathBuf,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    coloring: ColoringArgs,
    /// Write the frames in recorded order: gfn,confidence,how
    #[arg(short, long, value_name = "FILE.csv")]
    output: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
}

impl Command {
    /// What is read and written.
    pub(crate) fn files(&self) -> Files {
        match self {
            Self::Make(args) => args.image.inputs().reads(&args.traces).writes([&args.output]),
            Self::Merge(args) => Files::new().reads(&args.recordings).writes([&args.output]),
            Self::Inspect(_) => Files::new(),
            Self::Translate(args) => {
                args.image.inputs().reads([&args.recording]).writes(&args.output)
            }
        }
    }

    /// Does what is asked for.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Make(args) => args.run(),
            Self::Merge(args) => args.run(),
            Self::Inspect(args) => args.run(),
            Self::Translate(args) => args.run(),
        }
    }
}

impl MakeArgs {
    fn run(&self) -> Result<(), Failure> {
        let salt = if self.hash_paths { Some(random_salt()?) } else { None };
        let output = Output::lasting(&self.output)?;
        let (locality, identity) = color(&self.image, self.coloring)?;
        let mut runs = Vec::with_capacity(self.traces.len());
        for path in &self.traces {
            let trace = read_trace(path, &locality)?;
            runs.push(Recording::from_trace(&trace, &locality, identity));
        }
        let mut recording = merge(&runs)?;
        if let Some(salt) = salt {
            recording = recording.hashed(salt);
        }
        keep(&recording, output)
    }
}

impl MergeArgs {
    fn run(&self) -> Result<(), Failure> {
        let output = Output::lasting(&self.output)?;
        let recordings: Result<Vec<_>, _> = self.recordings.iter().map(|p| read(p)).collect();
        keep(&merge(&recordings?)?, output)
    }
}

impl InspectArgs {
    fn run(&self) -> Result<(), Failure> {
        let recording = read(&self.recording)?;
        let summary = show::Summary::of(&recording, self.top);
        print(&if self.json { show::json(&summary) } else { show::summary_tables(&summary) })
    }
}

impl TranslateArgs {
    fn run(&self) -> Result<(), Failure> {
        let recording = read(&self.recording)?;
        let output = create_if(self.output.as_ref())?;
        let (locality, identity) = color(&self.image, self.coloring)?;
        let translation = recording.translate(&locality, Some(&identity));
        if let Some(output) = output {
            output.write(|out| write_csv(out, &translation, &locality))?;
        }
        let result = show::Found::of(&translation);
        print(&if self.json { show::json(&result) } else { show::found_table(&result) })
    }
}

fn read_trace(path: &Path, locality: &LocalityOrder) -> Result<Trace, Failure> {
    let file = File::open(path).map_err(|e| Failure::at(path, e))?;
    Trace::from_csv(BufReader::new(file), locality.layout()).map_err(|error| {
        let other_guest = matches!(error, TraceError::NotRam { .. });
        let failure = Failure::at(path, error);
        failure.hint(if other_guest {
            "give the image and layout that the trace's clone was made of"
        } else {
            "a trace is a CSV with columns t_us and gfn (hexadecimal), by ascending time"
        })
    })
}

fn read(path: &Path) -> Result<Recording, Failure> {
    Recording::read_file(path, &RecordingLimits::default()).map_err(|error| explained(path, &error))
}

/// What is wrong with a recording, and what to do about it.
fn explained(path: &Path, error: &RecordingError) -> Failure {
    let failure = Failure::at(path, error);
    let RecordingError::File(file) = error else {
        return failure.hint("record again: the file is not what this program writes");
    };
    if matches!(file, ManifestError::Io(_)) {
        failure
    } else if matches!(file, ManifestError::Magic { .. }) {
        failure
            .hint("`kaleidoscope record make IMAGE --trace T.csv -o FILE.krec` makes a recording")
    } else if matches!(file, ManifestError::Version { .. } | ManifestError::Flags { .. }) {
        failure.hint("read it with the version that wrote it, or record again")
    } else {
        failure.hint("copy the file again, or record again")
    }
}

fn merge(recordings: &[Recording]) -> Result<Recording, Failure> {
    Recording::merge(recordings).map_err(|error| {
        let salts = error == MergeError::Salts;
        let failure = Failure::new(format_args!("cannot merge: {error}"));
        if salts {
            failure.hint("merge the recordings first, then hash names; or keep them apart")
        } else {
            failure
        }
    })
}

/// Writes a recording and says what was written.
fn keep(recording: &Recording, output: Output) -> Result<(), Failure> {
    let path = output.path().to_owned();
    let bytes = recording.to_bytes().map_err(|error| Failure::at(&path, error))?;
    output.write(|out| out.write_all(&bytes))?;
    print(&show::kept(recording, &path))
}

/// A salt that cannot be guessed before the recording is made.
fn random_salt() -> Result<Salt, Failure> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    let mut salt = [0; 16];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut salt))
        .map_err(|e| Failure::at(path, e).hint("--hash-paths needs a source of random numbers"))?;
    Ok(Salt(salt))
}

/// Writes `gfn,confidence,how`, one row per frame in recorded order; frame numbers are hexadecimal,
/// as in traces.
fn write_csv(
    out: &mut dyn Write,
    translation: &TranslatedRecording,
    locality: &LocalityOrder,
) -> io::Result<()> {
    writeln!(out, "gfn,confidence,how")?;
    for found in &translation.frames {
        let gfn = locality.layout().gfn_of(found.frame).unwrap_or_default();
        writeln!(out, "{:x},{:.3},{}", gfn.0, found.confidence, found.how)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map_output::test_map;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    fn run(words: &[&str]) -> Result<(), String> {
        let cli = Cli::try_parse_from([&["record"], words].concat()).map_err(|e| e.to_string())?;
        cli.command.run().map_err(|e| e.to_string())
    }

    fn recording() -> (LocalityOrder, Recording) {
        let locality = LocalityOrder::new(test_map::small());
        let text = "t_us,gfn\n1,6\n2,1\n3,103\n4,10\n";
        let trace = Trace::from_csv(text.as_bytes(), locality.layout()).unwrap();
        let image = ImageIdentity { digest: [9; 32], frames: 40 };
        let recording = Recording::from_trace(&trace, &locality, image);
        (locality, recording)
    }

    #[test]
    fn recordings_are_merged_and_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (a, both) = (path("a.krec"), path("both.krec"));
        let (locality, recording) = recording();
        assert_eq!(recording.entries().len(), 3, "frame 1 is free");
        recording.write_file(Path::new(&a)).unwrap();
        run(&["merge", &a, &a, "-o", &both]).unwrap();
        let merged = read(Path::new(&both)).unwrap();
        assert_eq!((merged.runs(), merged.entries().len()), (2, 3));
        run(&["inspect", &both]).unwrap();
        run(&["inspect", &both, "--json"]).unwrap();
        let summary = show::summary_tables(&show::Summary::of(&merged, 1));
        assert!(summary.contains("2 runs, 3 frames"), "{summary}");
        assert!(summary.contains("and 2 more"), "{summary}");
        let mut csv = Vec::new();
        let translation = merged.translate(&locality, Some(&merged.image()));
        write_csv(&mut csv, &translation, &locality).unwrap();
        let text = String::from_utf8(csv).unwrap();
        let rows = "6,1.000,file-offset\n103,1.000,same-address\n10,1.000,file-offset\n";
        assert_eq!(text, format!("gfn,confidence,how\n{rows}"));
        let found = show::found_table(&show::Found::of(&translation));
        assert!(found.contains("the very snapshot that was recorded"), "{found}");
    }

    #[test]
    fn failures_have_hints() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let error = run(&["inspect", &path("none.krec")]).unwrap_err();
        assert!(error.contains("No such file") && !error.contains("hint"), "{error}");
        std::fs::write(path("text.krec"), "hello").unwrap();
        let error = run(&["inspect", &path("text.krec")]).unwrap_err();
        assert!(
            error.contains("not a recording") && error.contains("hint: `kaleidoscope record make")
        );
        let (_, recording) = recording();
        for (name, salt) in [("a.krec", 1), ("b.krec", 2)] {
            let hashed = recording.clone().hashed(Salt([salt; 16]));
            hashed.write_file(Path::new(&path(name))).unwrap();
        }
        let out = path("out.krec");
        let error = run(&["merge", &path("a.krec"), &path("b.krec"), "-o", &out]).unwrap_err();
        assert!(error.contains("different salts\nhint: "), "{error}");
        let usage = run(&["make", "ram.bin", "-o", &out]).unwrap_err();
        assert!(usage.contains("--trace"), "{usage}");
    }
}
