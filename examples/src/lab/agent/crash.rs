//! Crashes the guest as with kdump: a second kernel waits in reserved memory, and a panic boots it.
//! The memory of the first kernel stays unchanged, with everything that identifies a kernel.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use super::os;
use super::workload;
use crate::lab::error::{Error, Result};

/// The kernel command line's word that reserves memory for a crash kernel.
pub(crate) const RESERVE: &str = "crashkernel=";

/// The crash kernel in the guest's root file system.
pub(crate) const KERNEL: &str = "/usr/lib/lab-crash-kernel";

/// Its initramfs.
pub(crate) const INITRAMFS: &str = "/usr/lib/lab-crash-initramfs";

/// The crash kernel's parameters, as in Debian's kdump-tools: reset the devices that the first
/// kernel left running, and use one vCPU.
const PARAMETERS: &str = "reset_devices nr_cpus=1";

/// How long a panic may take to end this process.
const PANIC_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether this kernel was booted by the panic of another one, whose memory is `/proc/vmcore`.
pub(crate) fn is_crash_kernel() -> bool {
    Path::new("/proc/vmcore").exists()
}

/// Loads the crash kernel and panics. `command_line` is the running kernel's.
///
/// # Errors
/// If the crash kernel cannot be loaded, or the kernel does not panic.
pub(crate) fn panic(command_line: &str) -> Result<Infallible> {
    let open = |path: &str| {
        let path = Path::new(path);
        File::open(path).map_err(Error::io("open", path))
    };
    let parameters = CString::new(crash_command_line(command_line))
        .map_err(|error| Error::Agent(format!("the crash kernel's command line: {error}")))?;
    os::load_crash_kernel(&open(KERNEL)?, &open(INITRAMFS)?, &parameters)
        .map_err(|error| Error::Agent(format!("kexec_file_load: {error}")))?;
    stay_on_the_last_cpu()?;
    // The crash kernel mounts the same file system and replays its journal.
    workload::sync()?;
    let trigger = Path::new("/proc/sysrq-trigger");
    fs::write(trigger, "c").map_err(Error::io("write", trigger))?;
    std::thread::sleep(PANIC_TIMEOUT);
    Err(Error::Agent("the kernel did not panic".to_owned()))
}

/// Moves this thread to the last vCPU. The vCPU that panics runs the crash kernel. The others,
/// including the first one if there are several, halt with the first kernel's page tables in their
/// registers.
fn stay_on_the_last_cpu() -> Result<()> {
    let failed = |error| Error::Agent(format!("staying on a CPU: {error}"));
    let cpus = sched_getaffinity(None).map_err(failed)?;
    let mut last = CpuSet::new();
    if let Some(cpu) = (0..CpuSet::MAX_CPU).rev().find(|cpu| cpus.is_set(*cpu)) {
        last.set(cpu);
    }
    sched_setaffinity(None, &last).map_err(failed)
}

/// The running kernel's parameters without the reservation, and those for a crash kernel. Linux
/// itself adds the address of the description of the first kernel's memory.
fn crash_command_line(command_line: &str) -> String {
    let kept = command_line.split_whitespace().filter(|word| !word.starts_with(RESERVE));
    kept.chain([PARAMETERS]).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_kernel_reserves_nothing() {
        let parameters = crash_command_line("quiet crashkernel=192M pti=on\n");
        assert_eq!(parameters, format!("quiet pti=on {PARAMETERS}"));
    }
}
