//! The `kaleidoscope` command.

mod lab;

use clap::Parser;

/// Clone warm virtual machines, and look at what their memory holds.
#[derive(Debug, Parser)]
#[command(version)]
enum Command {
    /// Boot real guests whose memory is then compared with what they say of it themselves.
    #[command(subcommand)]
    Lab(lab::Command),
    /// The lab's half inside the guest.
    #[command(hide = true)]
    LabAgent(lab::agent::Args),
}

fn main() -> std::process::ExitCode {
    let outcome = match Command::parse() {
        Command::Lab(command) => command.run(),
        Command::LabAgent(args) => args.run(),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kaleidoscope: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
