//! The `kaleidoscope` command.
mod analysis;
mod bench;
mod chart_style;
mod check;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod clone;
mod color;
mod cpio;
mod csv_out;
mod dedup;
mod demo;
mod explain;
mod failure;
mod json;
mod keys;
mod lab;
mod lines;
mod map;
mod outputs;
mod picture;
mod progress;
mod pull;
mod record;
mod replay;
mod serve;
mod statistics;
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
}

fn main() -> ExitCode {
    let done = |result: Result<(), failure::Failure>| match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    };
    match Cli::parse().command {
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
        Command::Lab(command) => done(command.run().map_err(failure::Failure::new)),
        Command::LabAgent(args) => done(args.run().map_err(failure::Failure::new)),
        Command::Check(args) => args.run().unwrap_or_else(|error| {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }),
    }
}
