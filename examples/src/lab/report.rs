//! The summary of `lab run`, as text and as JSON.

use std::fmt::{self, Display};
use std::path::PathBuf;

use serde::Serialize;

/// The summary of `lab run`, also written to `lab.json` in the guest's folder.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// The guest's folder.
    pub(crate) guest: PathBuf,
    /// Kernel release.
    pub(crate) kernel: String,
    /// QEMU's version, as printed by `--version`.
    pub(crate) emulator: String,
    /// QEMU machine type and CPU model.
    pub(crate) machine: String,
    /// RAM in bytes.
    pub(crate) memory_bytes: u64,
    /// Frames of RAM.
    pub(crate) frames: u64,
    /// Frames that are not all zeros.
    pub(crate) frames_used: u64,
    /// Number of vCPUs.
    pub(crate) cpus: u32,
    /// Features exercised.
    pub(crate) features: Vec<&'static str>,
    /// The guest's kernel command line.
    pub(crate) command_line: String,
    /// Bytes reserved for the crash kernel that the guest panicked into and was saved in.
    pub(crate) crash_kernel_bytes: Option<u64>,
    /// Records in `truth/gt`.
    pub(crate) truth_records: usize,
    /// Whether the ground truth is of the same instant as `ram.bin`.
    pub(crate) truth_is_same_instant: bool,
    /// How often the guest was booted.
    pub(crate) attempts: u32,
    /// Seconds from power-on to the agent's first message.
    pub(crate) boot_seconds: f64,
    /// Seconds of the workload.
    pub(crate) warm_seconds: f64,
    /// Seconds of the dump and the snapshot.
    pub(crate) dump_seconds: f64,
    /// Seconds in total, including packages.
    pub(crate) total_seconds: f64,
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = if self.features.is_empty() {
            "the plain workload".to_owned()
        } else {
            self.features.join(", ")
        };
        writeln!(f, "kernel    {} on {}", self.kernel, self.machine)?;
        writeln!(f, "memory    {} MiB, {} vCPU(s)", self.memory_bytes >> 20, self.cpus)?;
        writeln!(f, "frames    {} ({} not zero)", self.frames, self.frames_used)?;
        writeln!(f, "features  {features}")?;
        if let Some(reserved) = self.crash_kernel_bytes.map(|bytes| bytes >> 20) {
            writeln!(
                f,
                "panicked  into a crash kernel in {reserved} MiB, which is what was saved"
            )?;
        }
        writeln!(
            f,
            "seconds   {:.1} boot, {:.1} warm-up, {:.1} dump, {:.1} in all, boots: {}",
            self.boot_seconds,
            self.warm_seconds,
            self.dump_seconds,
            self.total_seconds,
            self.attempts
        )?;
        let guest = self.guest.display();
        writeln!(f, "memory in {guest}/ram.bin (with layout.txt and regs.txt)")?;
        write!(f, "truth in  {guest}/truth/gt, {} records of the same instant", self.truth_records)
    }
}
