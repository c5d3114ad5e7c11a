//! The part of the crate for sessions does not link the crates of KVM.

#![expect(clippy::unwrap_used, reason = "a test that cannot run cargo fails")]

use std::process::Command;

/// The crates that are linked with these features.
fn crates(features: &str) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none"]);
    command.args(["--no-default-features", "--features", features]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn sessions_need_no_crate_of_kvm() {
    const OF_KVM: [&str; 3] = ["kvm-bindings ", "kvm-ioctls ", "vmm-sys-util "];
    let (sessions, machines) = (crates("uffd"), crates("machine"));
    assert!(sessions.contains("userfaultfd "), "{sessions}");
    for name in OF_KVM {
        assert!(!sessions.contains(name), "{sessions}");
        assert!(machines.contains(name), "{machines}");
    }
}
