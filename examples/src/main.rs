//! The `kaleidoscope` command.
#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        reason = "files go through `outfile`, children through `interrupt`"
    )
)]

mod analysis;
mod args;
mod bench;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod capture;
mod chart_style;
mod check;
mod cli;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod clone;
mod color;
mod cpio;
mod dedup;
mod demo;
mod explain;
mod failure;
mod interrupt;
mod keys;
mod lab;
mod lines;
mod map;
mod map_output;
mod outfile;
mod picture;
mod progress;
mod pull;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod qemu;
mod record;
mod replay;
mod serve;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod snapshot_folder;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod socket;
mod stdio;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod supervise;
mod tls;
mod tune;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod verify;
mod vm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod vmm;

use cli::{Command, exit_status};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = |result: Result<(), Failure>| match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            stdio::say(format_args!("error: {failure}"));
            failure.exit_code()
        }
    };
    let command = match cli::parse() {
        Ok(command) => command,
        Err(error) => {
            let code = error.exit_code();
            return match stdio::show_usage(&error) {
                Ok(()) => u8::try_from(code).map_or_else(|_| exit_status::error(), ExitCode::from),
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
        #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
        Command::Capture(command) => done(command.run()),
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
        Command::Completions(args) => done(args.run()),
        Command::Man(args) => done(args.run()),
        Command::Lab(command) => done(command.run().map_err(|e| Failure::of(&e))),
        Command::LabAgent(args) => done(args.run().map_err(|e| Failure::of(&e))),
        Command::Check(args) => args.run().unwrap_or_else(|error| done(Err(Failure::new(error)))),
        Command::Commands(args) => done(args.run()),
        Command::UndoGuard(args) => {
            args.run();
            ExitCode::SUCCESS
        }
    }
}
