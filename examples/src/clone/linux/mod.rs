//! `kaleidoscope clone --kernel`: a Linux guest is booted, snapshot while it runs, colored, and cloned.

mod report;
mod run;

use crate::args::{ColoringArgs, MemorySize, memory_size, seconds};
use crate::check::FrameFindings;
use crate::failure::Failure;
use crate::map_output::csv;
use crate::map_output::outputs;
use crate::map_output::statistics::Statistics;
use crate::map_output::table;
use crate::outfile::{self, Files, create_folder};
use crate::picture;
use crate::progress;
use crate::replay::policies::{PolicyChoice, for_a_clone};
use crate::stdio::print;
use kaleidoscope_kvm::memory::PageSize;
use report::Report;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What `kaleidoscope-guest` says when it is warm, what it is told in a clone, and what it says to
/// that.
const READY: &str = "guest: ready";
const TOLD: &str = "clone {id}\\n";
const RIGHT: &str = "clone {id}: 4 of 4 right";

/// Boot Linux on KVM, freeze it while it runs, and start clones of it; or clone a VM of QEMU.
///
/// The guest has one processor, RAM, a serial line as its console, and a disk if it is given one.
/// When it has said what `--when` waits for it is snapshotted, and goes on; what every page of it is,
/// is found from outside. Each clone is told its identity on its console.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope clone --kernel vmlinux --init target/release/kaleidoscope-guest -o clones
      workers that check their memory; clones prove that they have all of it
  kaleidoscope clone --kernel vmlinuz --initramfs initrd.img --when 'login:' --clones 16 -o clones
      16 clones of any Linux that has come to its login prompt; their consoles are in files
  kaleidoscope clone --kernel vmlinux --disk root.ext4 --memory 1G --when 'login:' -o clones \\
          --append 'console=ttyS0 root=/dev/vda rw'
      a guest with a disk; what it and its clones write to it they keep to themselves
  kaleidoscope clone --kernel vmlinux --init ./server --when ready --tell 'id {id}\\n' \\
          --until serving --ways copied --policy predicted
      a program of your own as the guest's only one; clones whose pages come as they are touched
  kaleidoscope clone qemu --qmp parent.sock -o snapshot --clones 4
      clones of a VM that an unmodified QEMU runs")]
pub(crate) struct Args {
    /// The kernel: a bzImage, or a vmlinux
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Its first root, a cpio archive
    #[arg(long, value_name = "FILE", required_unless_present_any = ["init", "disk"])]
    initramfs: Option<PathBuf>,
    /// A program to run as its first process; its first root is made of it and the shared
    /// libraries that it needs
    #[arg(long, value_name = "PROGRAM", conflicts_with = "initramfs")]
    init: Option<PathBuf>,
    /// A disk (/dev/vda): a file or a block device, which stays as it is. What the guest writes is
    /// in memory, and a clone begins with what its parent had written
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// The kernel's command line
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "console=ttyS0 quiet reboot=t panic=-1 rdinit=/init"
    )]
    append: String,
    /// RAM, such as 512M or 2G; a bare number is in MiB
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = memory_size(2..=1 << 20))]
    memory: MemorySize,
    /// Make its RAM, and that of clones with copies of their own, of 2 MiB pages, which the system
    /// must have (vm.nr_hugepages)
    #[arg(long)]
    huge_pages: bool,
    /// Freeze the guest when it has said this on its console
    #[arg(long, value_name = "TEXT", default_value = READY)]
    when: String,
    /// And so long after that
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    after: Duration,
    /// Clones
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clones: u16,
    /// How clones get their memory; of several ways one after the other, so many clones of each
    #[arg(long, value_enum, value_name = "WAY", default_value = "local", value_delimiter = ',')]
    ways: Vec<Way>,
    /// What comes ahead of a touch, where pages come one by one: a policy of `kaleidoscope
    /// replay`, other than the oracle
    #[arg(long, value_name = "NAME", default_value = "predicted", value_parser = for_a_clone)]
    policy: PolicyChoice,
    /// What each clone is told on its console; {id} is its id, \n the end of a line. Unless --when
    /// is given: what `kaleidoscope-guest` is told
    #[arg(long, value_name = "TEXT")]
    tell: Option<String>,
    /// A clone has done its work when it has said this; {id} is its id. At the end the parent is
    /// told and has to say the same, under the name `parent`. Without it clones run for a
    /// second, unless --when is not given either: then it is what `kaleidoscope-guest` says
    #[arg(long, value_name = "TEXT")]
    until: Option<String>,
    /// When a clone runs, run this shell command beside it, with its id in KALEIDOSCOPE_CLONE:
    /// what registers it, say
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    #[command(flatten)]
    coloring: ColoringArgs,
    /// Compare the colors with what one more clone says of its own pages, which takes
    /// `kaleidoscope-guest` as --init
    #[arg(long, conflicts_with_all = ["initramfs", "page_tables"])]
    check: bool,
    /// How long the guest may take for each of these
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    timeout: Duration,
    /// Write consoles, the colors (colors.png, frames.csv, regions.csv) into this folder
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print a JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// What is written into the folder, beside consoles.
const WRITTEN: [&str; 3] = ["colors.png", "frames.csv", "regions.csv"];

/// How a clone gets its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Way {
    /// Shared with the parent on this host, until it is written
    Local,
    /// The same; what the parent has written since the freeze, and what the guest's kernel gives
    /// away next of its free memory, is copied ahead
    Ahead,
    /// Page by page, kept once for all clones of this host
    Staged,
    /// Page by page, a copy for each clone
    Copied,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Ahead => "ahead",
            Self::Staged => "staged",
            Self::Copied => "copied",
        }
    }
}

impl Args {
    /// What each clone is told; empty for nothing.
    fn tell(&self) -> &str {
        self.words(self.tell.as_deref(), TOLD)
    }

    /// What each clone says when it has done its work; empty for those that are not asked.
    fn until(&self) -> &str {
        self.words(self.until.as_deref(), RIGHT)
    }

    fn words<'a>(&'a self, given: Option<&'a str>, ours: &'static str) -> &'a str {
        given.unwrap_or(if self.when == READY { ours } else { "" })
    }

    fn pages(&self) -> PageSize {
        if self.huge_pages { PageSize::Huge } else { PageSize::Small }
    }

    /// What is read and written.
    pub(super) fn files(&self) -> Files {
        let reads = Files::new().reads([&self.kernel]).reads(&self.initramfs).reads(&self.init);
        let reads = reads.reads(&self.disk).reads(self.policy.input());
        let written = reads.writes_into(self.output.as_ref(), &WRITTEN);
        let consoles = self.ways.iter().flat_map(|way| {
            (0..self.clones).map(move |n| run::console_name(&format!("{}-{n}", way.name())))
        });
        let folder = self.output.iter();
        let others = [run::PARENT, run::ASKED].map(run::console_name).into_iter().chain(consoles);
        let mut names: Vec<_> = others.collect();
        // A way that is named twice has the same consoles again.
        names.sort();
        names.dedup();
        written.writes(folder.flat_map(|folder| names.iter().map(|name| folder.join(name))))
    }

    /// Boots, freezes, colors and clones.
    pub(super) fn run(&self) -> Result<(), Failure> {
        let _folder = self.output.as_deref().map(create_folder).transpose()?;
        let report = progress::during("clone", |status| run::run(self, status))?;
        if let Some(folder) = &self.output {
            write(folder, &report)?;
        }
        if self.json {
            let text = serde_json::to_string_pretty(&report.figures).map_err(Failure::new)?;
            print(&(text + "\n"))?;
        } else {
            let map = &report.map;
            let heading = table::heading(map);
            let colors = table::colors(&Statistics::of(map), outputs::shows_colors());
            print(&format!("{heading}\n{colors}\n{}", report.text()))?;
        }
        report.figures.check.as_ref().map_or(Ok(()), verdict)
    }
}

/// A coloring that the guest's own kernel contradicts is a failure.
fn verdict(findings: &FrameFindings) -> Result<(), Failure> {
    let failures = findings.failures(0);
    if failures.is_empty() {
        return Ok(());
    }
    Err(Failure::new(format_args!("the clone's kernel says otherwise: {}", failures.join("; ")))
        .hint("the frames are among the report's; `kaleidoscope lab run` and `check` show more")
        .finding())
}

fn write(folder: &Path, report: &Report) -> Result<(), Failure> {
    let map = &report.map;
    let canvas = picture::draw(map, &Statistics::of(map));
    let [png, frames, regions] = WRITTEN.map(|name| folder.join(name));
    outfile::write(&png, |out| canvas.write_png(out))?;
    outfile::write(&frames, |out| csv::write_frames(map, out))?;
    outfile::write(&regions, |out| csv::write_regions(map, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        let line = ["clone", "--kernel", "k"].iter().chain(words);
        Line::try_parse_from(line).map(|line| line.args)
    }

    #[test]
    fn other_guests_than_ours_are_told_nothing() {
        let ours = parse(&["--init", "guest"]).unwrap();
        assert_eq!((ours.tell(), ours.until()), (TOLD, RIGHT));
        let other = parse(&["--initramfs", "i", "--when", "login:"]).unwrap();
        assert_eq!((other.tell(), other.until()), ("", ""));
        let asked = parse(&["--init", "i", "--when", "up", "--until", "done"]).unwrap();
        assert_eq!((asked.tell(), asked.until()), ("", "done"));
    }

    #[test]
    fn a_guest_needs_a_first_process() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--init", "a", "--initramfs", "b"]).is_err());
        assert!(parse(&["--initramfs", "b", "--check"]).is_err());
        assert!(parse(&["--init", "a", "--policy", "oracle"]).is_err());
        let args = parse(&["--init", "a", "--ways", "local,copied"]).unwrap();
        assert_eq!(args.ways, [Way::Local, Way::Copied]);
    }
}
