//! The lab's agent inside the guest. It warms the guest, dumps the ground truth, and waits while
//! the host takes the snapshot.

#![cfg_attr(
    not(test),
    expect(clippy::disallowed_methods, reason = "it runs in a guest, whose files go with it")
)]

pub(crate) mod actors;
pub(crate) mod crash;
mod dump;
pub(crate) mod os;
mod programs;
mod raw_disk;
mod residency;
mod workload;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use self::actors::Actor;
use self::dump::Dump;
use self::workload::Workload;
use super::control::{FromGuest, FromHost};
use super::error::{Error, Result};
use super::feature::Features;

/// The serial port to the host; the first one is the console.
const CONTROL: &str = "/dev/ttyS1";

/// The kernel command line's word that lists the features.
pub(crate) const FEATURES: &str = "lab.features=";

/// The serial number of the raw disk for the ground truth.
pub(crate) const TRUTH_DISK: &str = "truth";

/// Arguments of the hidden command `lab-agent`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Arrange memory of one kind and stay alive, instead of running the guest.
    #[arg(long)]
    actor: Option<Actor>,
}

impl Args {
    /// Runs inside the guest.
    ///
    /// # Errors
    /// If a step fails. The error is also sent to the host.
    pub(crate) fn run(&self) -> Result<()> {
        match self.actor {
            Some(actor) => match actor.run() {
                Ok(never) => match never {},
                Err(error) => Err(Error::Agent(format!("{actor:?}: {error}"))),
            },
            None => {
                let mut host = Host::open()?;
                let outcome = run(&mut host);
                if let Err(error) = &outcome {
                    host.send(&FromGuest::Failed(error.to_string()))?;
                }
                outcome
            }
        }
    }
}

fn run(host: &mut Host) -> Result<()> {
    host.send(&FromGuest::Ready)?;
    let path = Path::new("/proc/cmdline");
    let command_line = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    let features = command_line.split_whitespace().find_map(|word| word.strip_prefix(FEATURES));
    let workload = if crash::is_crash_kernel() {
        Workload::start_in_crash_kernel()?
    } else {
        Workload::start(&Features::from_list(features.unwrap_or_default()))?
    };
    host.send(&FromGuest::Warm)?;
    loop {
        match host.receive()? {
            FromHost::Dump => break,
            FromHost::Crash => match crash::panic(&command_line)? {},
            FromHost::Again | FromHost::Run(_) => {}
        }
    }
    let mut dump = Dump::open(&workload::disk(TRUTH_DISK)?)?;
    dump.write_all()?;
    dump.read_flags_before()?;
    host.send(&FromGuest::Bracket)?;
    // The host pauses the guest here. Afterwards the guest continues with its dump, and a clone
    // runs the scripts that the host sends.
    loop {
        match host.receive()? {
            FromHost::Again => break,
            FromHost::Run(script) => {
                host.send(&FromGuest::Began)?;
                let status = run_script(&script)?;
                host.send(&FromGuest::Ended(status))?;
            }
            FromHost::Dump | FromHost::Crash => {}
        }
    }
    dump.finish()?;
    host.send(&FromGuest::Done)?;
    drop(workload);
    Ok(())
}

/// Runs a script with bash and returns its exit status, or -1 if a signal ended it.
fn run_script(script: &str) -> Result<i32> {
    // Standard error goes to the console, which the host quotes.
    let status = Command::new("bash")
        .args(["-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .map_err(|error| Error::Agent(format!("bash: {error}")))?;
    Ok(status.code().unwrap_or(-1))
}

/// The control connection to the host.
#[derive(Debug)]
struct Host {
    port: BufReader<File>,
}

impl Host {
    fn open() -> Result<Self> {
        let path = Path::new(CONTROL);
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(Error::io("open", path))?;
        // Turns echo and line editing off, so that the host's bytes arrive unchanged.
        let stty = Command::new("stty").args(["-F", CONTROL, "raw", "-echo", "115200"]).status();
        match stty {
            Ok(status) if status.success() => Ok(Self { port: BufReader::new(port) }),
            Ok(status) => Err(Error::Agent(format!("stty: {status}"))),
            Err(error) => Err(Error::Agent(format!("stty: {error}"))),
        }
    }

    fn send(&mut self, message: &FromGuest) -> Result<()> {
        self.port
            .get_mut()
            .write_all(format!("{message}\n").as_bytes())
            .map_err(Error::io("write", Path::new(CONTROL)))
    }

    /// Waits for the host's next message.
    fn receive(&mut self) -> Result<FromHost> {
        loop {
            let mut line = String::new();
            let count =
                self.port.read_line(&mut line).map_err(Error::io("read", Path::new(CONTROL)))?;
            if count == 0 {
                return Err(Error::Agent("the host hung up".to_owned()));
            }
            if let Some(message) = FromHost::parse(&line) {
                return Ok(message);
            }
        }
    }
}
