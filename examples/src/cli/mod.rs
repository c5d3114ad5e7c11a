//! The command line: the tree of subcommands, and what is generated from that tree.
//!
//! Each subcommand's arguments are in the module that runs it; those that several share are in
//! [`args`](crate::args).

mod commands;
mod completions;
pub(crate) mod exit_status;
mod man;
mod removed;
#[cfg(test)]
mod vocabulary;

use crate::outfile::Files;
use crate::{
    bench, check, color, dedup, demo, explain, interrupt, keys, lab, map, pull, record, replay,
    serve, tune,
};
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
use crate::{capture, clone};
use clap::{CommandFactory, FromArgMatches};

/// The program's name.
const NAME: &str = "kaleidoscope";

/// Columns that a line of help has at most.
const WIDTH: usize = 100;

/// All commands, as `--help` shows them.
fn command() -> clap::Command {
    exit_status::documented(Cli::command()).max_term_width(WIDTH)
}

/// Parses the process's arguments.
pub(crate) fn parse() -> Result<Command, clap::Error> {
    parse_from(std::env::args_os())
}

fn parse_from<T>(words: impl IntoIterator<Item = T>) -> Result<Command, clap::Error>
where
    T: Into<std::ffi::OsString> + Clone,
{
    let mut command = removed::known(command());
    let matches = command.try_get_matches_from_mut(words)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    Ok(cli.command)
}

/// Find out what every page of a virtual machine's memory is, from outside.
///
/// Colors the frames of memory images, serves their pages to clones, boots clones on KVM, and
/// measures what that costs.
#[derive(Debug, clap::Parser)]
#[command(name = NAME, version, after_help = "\
Examples:
  kaleidoscope demo
      clones of a running machine, on KVM if there is one
  kaleidoscope color ram.bin -o guest.kscope --plot guest.png
      what every frame of a memory image is
  kaleidoscope serve ram.bin --listen unix:/run/parent.sock
      its pages, for clones
  kaleidoscope help color
      the help of a command")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// The subcommands.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Demo(demo::Args),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Clone(Box<clone::Args>),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[command(subcommand)]
    Capture(capture::Command),
    Color(color::Args),
    Explain(explain::Args),
    Map(map::Args),
    Check(check::Args),
    Replay(replay::Args),
    Dedup(dedup::Args),
    Tune(tune::Args),
    Serve(serve::Args),
    Pull(pull::Args),
    Bench(bench::Args),
    #[command(subcommand)]
    Record(record::Command),
    Keys(keys::Args),
    Completions(completions::Args),
    Man(man::Args),
    #[command(subcommand)]
    Lab(lab::Command),
    /// The lab's half inside the guest.
    #[command(hide = true)]
    LabAgent(lab::agent::Args),
    #[command(name = interrupt::guard::NAME, hide = true)]
    UndoGuard(interrupt::guard::Args),
    #[command(hide = true)]
    Commands(commands::Args),
}

impl Command {
    /// What the command reads and writes.
    pub(crate) fn files(&self) -> Files {
        match self {
            Self::Demo(args) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Clone(args) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Capture(command) => command.files(),
            Self::Color(args) => args.files(),
            Self::Map(args) => args.files(),
            Self::Replay(args) => args.files(),
            Self::Dedup(args) => args.files(),
            Self::Tune(args) => args.files(),
            Self::Serve(args) => args.files(),
            Self::Pull(args) => args.files(),
            Self::Record(command) => command.files(),
            Self::Man(args) => args.files(),
            Self::Lab(command) => command.files(),
            // These write no files; keys are made where none of their names is.
            Self::Explain(_)
            | Self::Check(_)
            | Self::Bench(_)
            | Self::Keys(_)
            | Self::Completions(_)
            | Self::LabAgent(_)
            | Self::UndoGuard(_)
            | Self::Commands(_) => Files::new(),
        }
    }

    /// Whether another process or a guest's end ends it, and not a signal.
    pub(crate) fn is_inner(&self) -> bool {
        matches!(self, Self::LabAgent(_) | Self::UndoGuard(_))
    }
}
