//! Hints for hosts on which machines do not run.

use kaleidoscope_kvm::{Error, ErrorKind};
use rustix::io::Errno;
use std::path::Path;

/// What to do about an error of KVM, if the reader can do something.
pub(crate) fn of_kvm(error: &Error) -> Option<&'static str> {
    of(error.kind(), error.raw_os_error())
}

fn of(kind: ErrorKind, errno: Option<i32>) -> Option<&'static str> {
    match (kind, errno.map(Errno::from_raw_os_error)) {
        (ErrorKind::Unavailable, Some(Errno::ACCESS | Errno::PERM)) => Some(
            "join the group that /dev/kvm belongs to (`usermod -aG kvm USER`, and log in again), \
             or run it as root",
        ),
        (ErrorKind::Unavailable, _) => Some(
            "switch on VT-x or AMD-V in the firmware (in a VM: nested virtualization) and load \
             kvm_intel or kvm_amd; `kaleidoscope demo` and all commands that read images work \
             without KVM",
        ),
        (ErrorKind::Unsupported, _) => Some("a newer kernel of this host may have it"),
        _ => None,
    }
}

/// A hint for a guest whose kernel does not boot, if this host's KVM lacks hardware virtualization.
pub(crate) fn of_slow_host() -> Option<&'static str> {
    has_only_software(Path::new("/sys/module")).then_some(
        "this host's KVM works without hardware virtualization (neither kvm_intel nor kvm_amd is \
         loaded): it emulates kernels, slowly and not all of their instructions, and most kernels \
         do not boot. What works here: a kernel that was built for such a KVM, with a longer \
         --timeout; `kaleidoscope demo`, whose guest has no kernel; `kaleidoscope lab run`, under \
         QEMU's emulation. Elsewhere: a host with VT-x or AMD-V, or nested virtualization",
    )
}

/// Whether the kernel has KVM but no module for the processor's virtualization. `modules` is
/// `/sys/module`, which also lists built-in modules with parameters, such as these.
fn has_only_software(modules: &Path) -> bool {
    let has = |name: &str| modules.join(name).exists();
    has("kvm") && !has("kvm_intel") && !has("kvm_amd")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_hint() {
        let hint = |kind, errno: Errno| of(kind, Some(errno.raw_os_error())).unwrap_or_default();
        assert!(hint(ErrorKind::Unavailable, Errno::ACCESS).contains("usermod"));
        assert!(hint(ErrorKind::Unavailable, Errno::NOENT).contains("kvm_intel"));
        assert_eq!(of(ErrorKind::InvalidInput, None), None);
    }

    #[test]
    fn hardware_is_told_from_software() {
        let folder = tempfile::tempdir().unwrap();
        let module = |name: &str| std::fs::create_dir(folder.path().join(name)).unwrap();
        assert!(!has_only_software(folder.path()));
        module("kvm");
        assert!(has_only_software(folder.path()));
        module("kvm_amd");
        assert!(!has_only_software(folder.path()));
    }
}
