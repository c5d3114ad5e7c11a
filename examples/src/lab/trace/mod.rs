//! `kaleidoscope lab trace`: records which frames clones of a guest touch, and when.
//!
//! ```text
//!  saved guest ─ clone/devices, disks ─> machine (QEMU) <─ control ─> agent: a workload
//!            └─ ram.bin ─> RAM server <─ page faults ┘
//!                              └─> recorder ─> traces/NAME.csv
//! ```

mod huge_pages;
mod ram_server;
mod recorder;
mod report;
mod table;
mod workload;
mod written;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::ram_server::RamServer;
use self::report::Report;
use self::table::Trace;
use self::workload::Workload;
use super::control::{FromGuest, FromHost};
use super::error::{Error, Result};
use super::machine::{Machine, qemu_version};
use super::saved::SavedMachine;
use super::steps::Steps;
use crate::args::{seconds, some_seconds};
use crate::interrupt::Scratch;
use crate::outfile;
use crate::stdio::print_line;

/// The name for all built-in workloads.
const ALL: &str = "all";

/// Record which frames a clone of a guest touches, and when, under QEMU's emulation.
///
/// A clone starts from what `lab run` saved, with no frame of its memory present: the memory is a
/// file of a file system that this command serves, and each first touch of a frame reads its page.
/// The trace is GUEST/traces/NAME.csv. Needs /dev/fuse and root's rights.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope lab trace guests/web --workload idle,shell
      two traces, each of a clone of its own
  kaleidoscope lab trace guests/web --workload all --seed 2
      all built-in workloads with other data
  kaleidoscope lab trace guests/web --command 'du -s /usr' --name du --duration 30
      a command of your own, for at most 30 seconds")]
pub(crate) struct Args {
    /// The guest's folder.
    guest: PathBuf,
    /// What the clone does; repeat or separate by commas; each is run in a clone of its own. One
    /// of idle, sql-scan, sql-fresh, python-import, shell, grep, perl, sort, find, copy,
    /// warm-process, or all.
    #[arg(long, value_name = "NAME", value_delimiter = ',', required_unless_present = "command")]
    workload: Vec<String>,
    /// Words for bash to run in a clone.
    #[arg(long, value_name = "WORDS", requires = "name")]
    command: Option<String>,
    /// The name of --command's trace.
    #[arg(long, value_name = "NAME", requires = "command")]
    name: Option<String>,
    /// The workloads' $SEED: another seed does alike with other data. The trace is called
    /// NAME-SEED unless the seed is 1.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u32,
    /// End the recording after this time even if the workload goes on [default: 10 for idle
    /// clones, else --timeout, after which recording fails]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
    /// How long to wait for a workload
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = some_seconds)]
    timeout: Duration,
    /// Print the reports as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Records all requested traces.
    ///
    /// # Errors
    /// If the guest cannot be cloned or a workload fails.
    pub(crate) fn run(&self) -> Result<()> {
        let workloads = self.workloads()?;
        let guest = self.guest.canonicalize().map_err(Error::io("find", &self.guest))?;
        let session = Recording {
            saved: SavedMachine::open(&guest)?,
            traces: guest.join("traces"),
            guest,
            seed: self.seed,
            seconds: self.duration,
            timeout: self.timeout,
        };
        fs::create_dir_all(&session.traces).map_err(Error::io("create", &session.traces))?;
        let mut reports = Vec::new();
        for workload in &workloads {
            let report = session.record(workload)?;
            if !self.json {
                print_line(&report)?;
            }
            reports.push(report);
        }
        if self.json {
            print_line(to_json(&reports)?)?;
        }
        Ok(())
    }

    fn workloads(&self) -> Result<Vec<Workload>> {
        let mut found = Vec::new();
        for name in &self.workload {
            if name == ALL {
                found.extend(
                    Workload::names().filter_map(|name| Workload::built_in(name, self.seed)),
                );
                continue;
            }
            found.push(Workload::built_in(name, self.seed).ok_or_else(|| {
                let known = Workload::names().collect::<Vec<_>>().join(", ");
                Error::Trace(format!("no workload is called {name:?}; there are {known}, {ALL}"))
            })?);
        }
        if let (Some(words), Some(name)) = (&self.command, &self.name) {
            if !workload::is_plain(name) {
                return Err(Error::Trace(format!("{name:?} cannot be a file's name")));
            }
            found.push(Workload::command(name, words, self.seed));
        }
        Ok(found)
    }
}

/// Common settings of one guest's recordings.
struct Recording {
    saved: SavedMachine,
    guest: PathBuf,
    traces: PathBuf,
    seed: u32,
    seconds: Option<Duration>,
    timeout: Duration,
}

/// How a clone ran. Times are since it was resumed.
struct CloneRun {
    resumed: Instant,
    began: Option<Duration>,
    finished: bool,
    lasted: Duration,
}

impl Recording {
    /// Runs a workload in a clone and writes its trace. Uses a new thread, because the thread's
    /// system call filter cannot be removed.
    fn record(&self, workload: &Workload) -> Result<Report> {
        let recording = || self.record_here(workload);
        std::thread::scope(|scope| scope.spawn(recording).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn record_here(&self, workload: &Workload) -> Result<Report> {
        let steps = Steps::new();
        steps.begin(&format!("{}: starting a clone", workload.name));
        let scratch = Scratch::new("kaleidoscope-trace-")
            .map_err(Error::io("create", Path::new("scratch folder")))?;
        // Declared before the machine, so that it serves until QEMU has exited.
        let server = RamServer::mount(&self.guest.join("ram.bin"))?;
        let console = scratch.path().join("console");
        let config = self.saved.config(&self.guest, server.path(), console, self.timeout);
        huge_pages::refuse()?;
        let mut machine = Machine::start(&config)?;
        server.detach()?;
        machine
            .load_devices(&SavedMachine::devices(&self.guest))
            .map_err(|error| self.saved_by_another(error))?;
        let layout = machine.layout()?;
        let vcpus = machine.vcpu_threads()?;
        let run = self.run_clone(&mut machine, workload, &server, &steps)?;
        machine.pause()?;
        let written = written::pages(machine.pid(), ram_server::INODE)?;
        drop(machine);

        let recorder = server.recorder();
        let end = run.resumed + run.lasted;
        let touches = recorder.touches().map_err(|what| Error::Trace(what.to_owned()))?;
        // Touches while the clone was being paused do not belong to the workload.
        let touches =
            touches.get(..touches.partition_point(|touch| touch.at <= end)).unwrap_or_default();
        let trace = Trace {
            touches,
            resumed: run.resumed,
            layout: &layout,
            vcpus: &vcpus,
            written: &written,
        };
        let path = self.traces.join(format!("{}.csv", workload.name));
        write(&trace, &path)?;
        let report = Report {
            name: workload.name.clone(),
            seed: self.seed,
            script: workload.script.clone(),
            seconds: run.lasted.as_secs_f64(),
            began_seconds: run.began.map(|began| began.as_secs_f64()),
            finished: run.finished,
            touches: touches.len(),
            touches_by_vcpus: touches.iter().filter(|t| trace.vcpu(t).is_some()).count(),
            touches_before: touches.iter().filter(|t| t.at < run.resumed).count(),
            written: touches.iter().filter(|t| written.contains(&t.page)).count(),
            frames: (self.saved.memory_mib << 20) / recorder::FRAME,
            read_again: recorder.again(),
            trace: path.clone(),
        };
        let beside = path.with_extension("json");
        let text = to_json(&report)?;
        outfile::write(&beside, |out| out.write_all(text.as_bytes()))?;
        Ok(report)
    }

    /// Adds QEMU's versions to `error` if they differ from when the guest was saved, because this
    /// may be the cause.
    fn saved_by_another(&self, error: Error) -> Error {
        match qemu_version() {
            Ok(now) if now != self.saved.emulator => Error::Trace(format!(
                "{error}\n(saved by {}, loaded by {now}; make the guest again)",
                self.saved.emulator
            )),
            Ok(_) | Err(_) => error,
        }
    }

    /// Runs the clone until its workload ends or its time is up.
    fn run_clone(
        &self,
        machine: &mut Machine,
        workload: &Workload,
        server: &RamServer,
        steps: &Steps,
    ) -> Result<CloneRun> {
        let idle = workload.is_idle();
        let limit = self.seconds.or(idle.then_some(Duration::from_secs(10)));
        let resumed = Instant::now();
        machine.resume()?;
        if !idle {
            machine.send(&FromHost::Run(workload.script.clone()))?;
        }
        let mut began = None;
        loop {
            let message = machine.receive(resumed)?;
            let lasted = resumed.elapsed();
            match message {
                Some(FromGuest::Began) => began = Some(lasted),
                Some(FromGuest::Ended(0)) => {
                    return Ok(CloneRun { resumed, began, finished: true, lasted });
                }
                Some(FromGuest::Ended(status)) => {
                    let what = format!("{} failed with exit status {status}", workload.name);
                    return Err(machine.guest_error(what, resumed));
                }
                Some(message) => {
                    return Err(machine.guest_error(format!("the guest sent `{message}`"), resumed));
                }
                None if limit.is_some_and(|limit| lasted >= limit) => {
                    return Ok(CloneRun { resumed, began, finished: false, lasted });
                }
                None if lasted > self.timeout => {
                    let what = format!("{} does not end", workload.name);
                    return Err(machine.guest_error(what, resumed));
                }
                None => {
                    let count = server.recorder().touches().map_or(0, <[_]>::len);
                    steps.begin(&format!("{}: {count} touches", workload.name));
                }
            }
        }
    }
}

fn write(trace: &Trace<'_>, path: &Path) -> Result<()> {
    let written = |out: &mut dyn Write| trace.write(out).map_err(io::Error::other);
    Ok(outfile::write(path, written)?)
}

fn to_json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|error| Error::Trace(format!("cannot write the report: {error}")))
}
