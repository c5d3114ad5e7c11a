//! Hints for hosts on which machines do not run.

use kaleidoscope_kvm::KvmError;
use rustix::io::Errno;
use std::path::Path;

/// A remedy for an error of KVM, if there is one.
pub(crate) fn of_kvm(error: &KvmError) -> Option<&'static str> {
    Some(match error {
        KvmError::NoKvm(Errno::ACCESS | Errno::PERM) => {
            "join the group that /dev/kvm belongs to (`usermod -aG kvm USER`, and log in again), \
             or run it as root"
        }
        KvmError::NoKvm(_) => {
            "switch on VT-x or AMD-V in the firmware (in a VM: nested virtualization) and load \
             kvm_intel or kvm_amd; `kaleidoscope demo` and all commands that read images work \
             without KVM"
        }
        KvmError::Lacking(_) => "a newer host kernel may support it",
        KvmError::Refused { .. }
        | KvmError::State(_)
        | KvmError::NotWhole(_)
        | KvmError::NotRam { .. }
        | KvmError::Ended(_)
        | KvmError::Hook(_)
        | KvmError::StoreFile(_)
        | KvmError::Stuck(_)
        | _ => return None,
    })
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
        let hint = |error: KvmError| of_kvm(&error).unwrap_or_default();
        assert!(hint(KvmError::NoKvm(Errno::ACCESS)).contains("usermod"));
        assert!(hint(KvmError::NoKvm(Errno::NOENT)).contains("kvm_intel"));
        assert_eq!(hint(KvmError::State("cut".to_owned())), "");
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
