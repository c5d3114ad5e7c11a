//! The `kaleidoscope` command.
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        reason = "files go through `outfile`, children through `interrupt`"
    )
)]

mod analysis;
mod bench;
mod chart_style;
mod check;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod clone;
mod color;
mod commands;
mod cpio;
mod csv_out;
mod dedup;
mod demo;
mod explain;
mod failure;
mod interrupt;
mod json;
mod keys;
mod lab;
mod lines;
mod map;
mod outfile;
mod outputs;
mod picture;
mod progress;
mod pull;
mod record;
mod replay;
mod serve;
mod statistics;
mod stdio;
mod table;
#[cfg(test)]
mod test_map;
mod tls;
mod tune;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod verify;
mod vm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod vmm;

use std::process::ExitCode;

use clap::Parser;
use outfile::Files;

/// Find out what every page of a virtual machine's memory is, from outside.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Demo(demo::Args),
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    Clone(Box<clone::Args>),
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
    /// Boot real guests whose memory can be compared with what they say of it themselves.
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
    fn files(&self) -> Files {
        match self {
            Self::Demo(args) => args.files(),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            Self::Clone(args) => args.files(),
            Self::Color(args) => args.files(),
            Self::Map(args) => args.files(),
            Self::Replay(args) => args.files(),
            Self::Dedup(args) => args.files(),
            Self::Tune(args) => args.files(),
            Self::Serve(args) => args.files(),
            Self::Pull(args) => args.files(),
            Self::Record(command) => command.files(),
            Self::Lab(command) => command.files(),
            // These write no files; keys are made where none of their names is.
            Self::Explain(_)
            | Self::Check(_)
            | Self::Bench(_)
            | Self::Keys(_)
            | Self::LabAgent(_)
            | Self::UndoGuard(_)
            | Self::Commands(_) => Files::new(),
        }
    }

    /// Whether another process or a guest's end ends it, and not a signal.
    fn is_inner(&self) -> bool {
        matches!(self, Self::LabAgent(_) | Self::UndoGuard(_))
    }
}

fn main() -> ExitCode {
    let done = |result: Result<(), failure::Failure>| match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            stdio::say(format_args!("error: {failure}"));
            ExitCode::FAILURE
        }
    };
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            let code = error.exit_code();
            return match stdio::show_usage(&error) {
                Ok(()) => ExitCode::from(u8::try_from(code).unwrap_or(2)),
                failed => done(failed),
            };
        }
    };
    if !command.is_inner()
        && let failed @ Err(_) = interrupt::begin().and_then(|()| command.files().check())
    {
        return done(failed);
    }
    match command {
        Command::Demo(args) => done(args.run()),
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Command::Clone(args) => done(args.run()),
        Command::Color(args) => done(args.run()),
        Command::Explain(args) => done(args.run()),
        Command::Map(args) => done(args.run()),
        Command::Replay(args) => done(args.run()),
        Command::Dedup(args) => done(args.run()),
        Command::Tune(args) => done(args.run()),
        Command::Serve(args) => done(args.run()),
        Command::Pull(args) => done(args.run()),
        Command::Bench(args) => done(args.run()),
        Command::Record(command) => done(command.run()),
        Command::Keys(args) => done(args.run()),
        Command::Lab(command) => done(command.run().map_err(|e| failure::Failure::of(&e))),
        Command::LabAgent(args) => done(args.run().map_err(|e| failure::Failure::of(&e))),
        Command::Check(args) => args.run().unwrap_or_else(|error| {
            stdio::say(format_args!("error: {error}"));
            ExitCode::from(2)
        }),
        Command::Commands(args) => done(args.run()),
        Command::UndoGuard(args) => {
            args.run();
            ExitCode::SUCCESS
        }
    }
}
