//! `kaleidoscope capture cloud-hypervisor`: a VM that cloud-hypervisor sends.

use crate::args::{layout_text, some_seconds};
use crate::failure::Failure;
use crate::map_output::table::size;
use crate::outfile::{Files, Output, create_folder};
use crate::snapshot_folder::SnapshotFolder;
use crate::socket::Socket;
use crate::stdio::{print_line, say};
use kaleidoscope_kvm::cloud_hypervisor::{Capture, capture};
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often it is looked whether the VMM connects.
const TICK: Duration = Duration::from_millis(100);

/// Capture a VM that cloud-hypervisor sends.
///
/// Plays the new host of a local migration, keeps what it gets, and lets cloud-hypervisor go on with
/// its VM. The VM needs shared memory (`--memory size=...,shared=on`). It is paused while its memory
/// is copied, and stays paused until it is resumed.
///
/// cloud-hypervisor 53.0 does not know preserve_source=on: without it, the VM is ended once it is
/// captured.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kaleidoscope capture cloud-hypervisor --socket /run/capture.sock -o parent
      waits for the VM, and writes parent/ram.bin, layout.txt, config.json and state.json
  ch-remote --api-socket vm.api send-migration \\
          destination_url=unix:/run/capture.sock,local=on,preserve_source=on
      what cloud-hypervisor is told meanwhile; then `ch-remote --api-socket vm.api resume`
  kaleidoscope serve cloud-hypervisor parent --socket /run/clone.sock
      a clone of the VM")]
pub(crate) struct Args {
    /// Socket to which cloud-hypervisor is told to send the VM
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Folder for the VM; it is made if there is none
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Longest wait for a step of the migration once it has begun
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = some_seconds)]
    timeout: Duration,
    /// Print the result as a JSON object
    #[arg(long)]
    json: bool,
}

/// What was captured.
#[derive(Serialize)]
struct Captured {
    event: &'static str,
    output: String,
    memory_bytes: u64,
    slots: usize,
    config_bytes: usize,
    state_bytes: usize,
    /// Whether the VM ran before.
    was_running: bool,
    /// From the first message to the answer to the last one.
    seconds: f64,
}

impl Args {
    /// What is written.
    pub(crate) fn files(&self) -> Files {
        Files::new().writes(SnapshotFolder::new(&self.output).all())
    }

    /// Captures a VM.
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let created = create_folder(&self.output)?;
        let folder = SnapshotFolder::new(&self.output);
        if let Some(found) = folder.all().into_iter().find(|path| path.exists()) {
            // Half of each would be a VM that never was.
            return Err(Failure::at(found, "it is there already")
                .hint("capture into a folder that holds no other VM"));
        }
        let memory = Output::memory(&folder.memory, 0)?;
        let socket = Socket::bind(&self.socket, 0o600)?;
        let url = format!("unix:{}", socket.path().display());
        say(format_args!(
            "waiting for send-migration destination_url={url},local=on,preserve_source=on"
        ));
        let stream = loop {
            if let Some(stream) = socket.accept_within(TICK)? {
                break stream;
            }
        };
        drop(socket);

        let start = Instant::now();
        let failed = |error: &dyn std::fmt::Display| Failure::new(error);
        let file = memory.file().ok_or_else(|| {
            Failure::unwritable(&folder.memory, &io::ErrorKind::InvalidInput.into())
        })?;
        let vm = capture(stream, file, self.timeout).map_err(|error| {
            let number = error.raw_os_error().map(io::Error::from_raw_os_error);
            match number {
                // The memory file: all other steps have no system's answer but the connection's.
                Some(reason) => Failure::unwritable(&folder.memory, &reason),
                None => failed(&error),
            }
        })?;
        memory.keep()?;
        let layout = layout_text(vm.layout());
        write(&folder.layout, layout.as_bytes())?;
        write(&folder.config, vm.config())?;
        write(&folder.state, vm.state())?;
        let captured = self.captured(&vm, start);
        vm.acknowledge().map_err(Failure::new)?;
        drop(created);
        let seconds = start.elapsed().as_secs_f64();
        let captured = Captured { seconds, ..captured };
        print_line(if self.json { captured.json() } else { captured.text() })
    }

    fn captured(&self, vm: &Capture, start: Instant) -> Captured {
        Captured {
            event: "captured",
            output: self.output.display().to_string(),
            memory_bytes: vm.layout().bytes(),
            slots: vm.slots().len(),
            config_bytes: vm.config().len(),
            state_bytes: vm.state().len(),
            was_running: vm.was_running(),
            seconds: start.elapsed().as_secs_f64(),
        }
    }
}

/// Writes what only its owner may read.
fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    Output::secret(path)?.write(|out| out.write_all(bytes))
}

impl Captured {
    /// For programs: one line.
    fn json(&self) -> String {
        // Numbers and texts always serialize.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people: without the end of the last line.
    fn text(&self) -> String {
        let Self { output, memory_bytes, slots, seconds, was_running, .. } = self;
        let state = if *was_running { "it was running, and is paused" } else { "it was paused" };
        format!(
            "captured {} of RAM in {slots} slots in {seconds:.1} s: {output}\n\
             {state} (`ch-remote resume`), or ended without preserve_source=on",
            size(*memory_bytes)
        )
    }
}
