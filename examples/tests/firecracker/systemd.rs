//! A handler whose supervisor is systemd, of which a double holds the descriptors.

use crate::Snapshot;
use crate::double::WATCHDOG;
use crate::handler::Handler;
use command_fds::{CommandFdExt, FdMapping};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;

/// A service manager with a file descriptor store, as in sd_pid_notify_with_fds(3).
struct Manager {
    path: PathBuf,
    notify: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new(path: PathBuf) -> Self {
        let notify = UnixDatagram::bind(&path).unwrap();
        notify.set_read_timeout(Some(WATCHDOG)).unwrap();
        Self { path, notify, kept: Vec::new() }
    }

    /// Takes messages, to the one that has this line.
    fn until(&mut self, line: &str) {
        while !self.take(RecvFlags::empty()).unwrap().lines().any(|said| said == line) {}
    }

    /// Takes all messages of a handler that has ended.
    fn drain(&mut self) {
        while self.take(RecvFlags::DONTWAIT).is_some() {}
    }

    /// Takes a message; `None` without one.
    fn take(&mut self, flags: RecvFlags) -> Option<String> {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(&self.notify, &mut slices, &mut ancillary, flags) {
            Err(Errno::AGAIN) if flags.contains(RecvFlags::DONTWAIT) => return None,
            received => received.unwrap(),
        };
        let text = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
        let name = text.lines().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("");
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                assert!(text.contains("FDSTORE=1"), "{text}");
                // The last one first, as systemd does it.
                rights.for_each(|fd| self.kept.insert(0, (name.to_owned(), fd)));
            }
        }
        if text.contains("FDSTOREREMOVE=1") {
            self.kept.retain(|(kept, _)| kept != name);
        }
        Some(text)
    }

    /// The command that it starts, with the descriptors that it holds.
    fn command(&self) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]);
        command.arg(env!("CARGO_BIN_EXE_kaleidoscope")).env("NOTIFY_SOCKET", &self.path);
        let names: Vec<_> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let passed = self.kept.iter().zip(3..);
        let mapping = |((_, fd), child_fd): (&(String, OwnedFd), i32)| FdMapping {
            parent_fd: fd.try_clone().unwrap(),
            child_fd,
        };
        command.fd_mappings(passed.map(mapping).collect()).unwrap();
        command
    }
}

#[test]
fn systemd_holds_the_descriptors() {
    let snapshot = Snapshot::new(48);
    let mut manager = Manager::new(snapshot.path("notify"));
    let layout = snapshot.path("layout.txt").display().to_string();
    let arguments = ["--layout", &layout, "--fetch-free", "--supervisor", "systemd"];
    let start = |manager: &Manager| {
        let (folder, memory) = (snapshot.path(""), snapshot.path("memory"));
        Handler::start_as(manager.command(), &folder, &memory, &arguments)
    };
    let mut handler = start(&manager);
    manager.until("READY=1");
    let mut vms = [snapshot.load(&handler, ""), snapshot.load(&handler, "")];
    vms.iter().for_each(|_| drop(handler.event("started")));
    for round in 0..4 {
        let command = format!("churn {round} 1500");
        vms.iter_mut().for_each(|vm| vm.begin(&command));
        handler.signal("-KILL");
        handler.ended();
        manager.drain();
        handler = start(&manager);
        manager.until("READY=1");
        vms.iter().for_each(|_| assert_eq!(handler.event("started")["taken_over"], true));
        vms.iter_mut().for_each(|vm| vm.finish(&command));
    }
    let [first, mut second] = vms;
    first.shut_down();
    let name = format!("vm-{}", handler.event("ended")["vm"]);
    // Nothing was stored since the last start: it is removed.
    manager.until(&format!("FDNAME={name}"));
    assert!(manager.kept.iter().all(|(kept, _)| *kept != name));
    // systemd lets go of a unit that failed too often: the guard ends the VMM.
    handler.signal("-KILL");
    handler.ended();
    drop(manager);
    assert!(!second.ended().success());
}

#[test]
fn without_a_manager_there_is_an_error() {
    let snapshot = Snapshot::new(48);
    let mut command = Command::new(env!("CARGO_BIN_EXE_kaleidoscope"));
    command.args(["serve", "firecracker", "--supervisor", "systemd", "--socket"]);
    command.arg(snapshot.path("s")).arg("--memory").arg(snapshot.path("memory"));
    let ended = command.env_remove("NOTIFY_SOCKET").output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(said.contains("FileDescriptorStoreMax="), "{said}");
}
