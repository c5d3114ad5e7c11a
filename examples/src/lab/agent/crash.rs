//! The guest's end as kdump arranges it: a second kernel waits in reserved memory, and a panic
//! boots it. The memory of the first kernel stays as it was, with everything that identifies a
//! kernel.

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

/// What Debian's kdump-tools tells a crash kernel: to reset the devices that the first kernel left
/// running, and to start no other vCPU.
const WORDS: &str = "reset_devices nr_cpus=1";

/// How long a panic may take to end this process.
const PANIC_PATIENCE: Duration = Duration::from_secs(60);

/// Whether this kernel was booted by the panic of another one: it shows that one's memory.
pub(crate) fn is_crash_kernel() -> bool {
    Path::new("/proc/vmcore").exists()
}

/// Loads the crash kernel and panics. `command_line` is the running kernel's.
///
/// # Errors
/// If the crash kernel cannot be loaded, or nothing happens.
pub(crate) fn panic(command_line: &str) -> Result<Infallible> {
    let open = |path: &str| {
        let path = Path::new(path);
        File::open(path).map_err(Error::io("open", path))
    };
    let words = CString::new(crash_command_line(command_line))
        .map_err(|error| Error::Agent(format!("the crash kernel's command line: {error}")))?;
    os::load_crash_kernel(&open(KERNEL)?, &open(INITRAMFS)?, &words)
        .map_err(|error| Error::Agent(format!("kexec_file_load: {error}")))?;
    stay_on_the_last_cpu()?;
    // The next life mounts the same file system, and repeats what its journal has.
    workload::sync()?;
    let trigger = Path::new("/proc/sysrq-trigger");
    fs::write(trigger, "c").map_err(Error::io("write", trigger))?;
    std::thread::sleep(PANIC_PATIENCE);
    Err(Error::Agent("the kernel did not panic".to_owned()))
}

/// The vCPU that panics runs the crash kernel, and the others halt in the first kernel, whose page
/// tables their registers name: the first vCPU among them, unless there is only one.
fn stay_on_the_last_cpu() -> Result<()> {
    let failed = |error| Error::Agent(format!("staying on a CPU: {error}"));
    let cpus = sched_getaffinity(None).map_err(failed)?;
    let mut last = CpuSet::new();
    if let Some(cpu) = (0..CpuSet::MAX_CPU).rev().find(|cpu| cpus.is_set(*cpu)) {
        last.set(cpu);
    }
    sched_setaffinity(None, &last).map_err(failed)
}

/// The running kernel's words, but for the reservation, and those for a crash kernel. Linux itself
/// adds where the first kernel's memory is described.
fn crash_command_line(command_line: &str) -> String {
    let kept = command_line.split_whitespace().filter(|word| !word.starts_with(RESERVE));
    kept.chain([WORDS]).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_kernel_reserves_nothing() {
        let words = crash_command_line("quiet crashkernel=192M pti=on\n");
        assert_eq!(words, format!("quiet pti=on {WORDS}"));
    }
}
