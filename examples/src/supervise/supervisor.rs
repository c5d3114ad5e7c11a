//! The supervisor's side: it holds descriptors, and starts handlers.

use super::process::{Kept, Process};
use super::{NOTIFY, SHARED, STARTER};
use crate::failure::Failure;
use crate::interrupt::Stop;
use crate::stdio::say;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use rustix::process::pidfd_send_signal;
use std::fs;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often signals are looked at.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// Handlers that end before they serve, one after the other, until the supervisor gives up.
const ATTEMPTS: u32 = 5;

/// The pause before the second of them; each later one doubles it.
const PAUSE: Duration = Duration::from_millis(50);

/// Most bytes of a message, and most descriptors (Linux's limit).
const MAX_MESSAGE: usize = 4096;
const MAX_DESCRIPTORS: usize = 253;

/// Most names. The handler has fewer VMs, with two names for each.
const MAX_NAMES: usize = 16_384;

/// Holds a handler's descriptors.
#[derive(Debug)]
pub(super) struct Supervisor {
    path: PathBuf,
    kept: Kept,
    notify: UnixDatagram,
    handler: Process,
    /// Signals are passed on.
    stop: Stop,
    /// Handlers that have not served since the last one that did.
    failed: u32,
    /// The handler has nothing more to serve.
    is_stopping: bool,
    /// The signal that asked for the end. A handler that was starting may have died of it.
    asked: Option<rustix::process::Signal>,
    /// Whether the handler is not the one that was asked.
    is_successor: bool,
}

impl Supervisor {
    /// Starts a handler, which finds the supervisor at `path`.
    pub(super) fn start(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| {
            Failure::at(path, format_args!("cannot listen there as the supervisor: {error}"))
        };
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                if UnixDatagram::unbound().and_then(|s| s.connect(path)).is_ok() {
                    return Err(failed(ErrorKind::AddrInUse.into())
                        .hint("a handler runs with this --socket: stop it, or choose another"));
                }
                fs::remove_file(path).map_err(failed)?;
            }
            Ok(_) => return Err(failed(ErrorKind::AlreadyExists.into())),
            Err(_) => {}
        }
        let notify = UnixDatagram::bind(path).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        notify.set_nonblocking(true).map_err(failed)?;
        let copy = notify.try_clone().map_err(failed)?;
        let kept = Kept::from([(NOTIFY.to_owned(), vec![OwnedFd::from(copy)])]);
        // A signal from here on is passed on to the handler.
        let stop = Stop::take_every();
        let handler = Process::start("handler", path, &kept).map_err(Failure::new);
        let handler = handler.inspect_err(|_| {
            let _ = fs::remove_file(path);
        })?;
        Ok(Self::of(path.into(), kept, notify, handler, stop))
    }

    /// Holds the descriptors of the handler that started this process because the former supervisor
    /// has died.
    pub(super) fn adopt(passed: Vec<(String, OwnedFd)>) -> Result<Self, Failure> {
        let path = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from);
        let path = path.ok_or_else(|| Failure::new("there is no NOTIFY_SOCKET"))?;
        let mut kept = Kept::new();
        for (name, descriptor) in passed {
            kept.entry(name).or_default().push(descriptor);
        }
        let notify = kept.get(NOTIFY).and_then(|all| all.first());
        let notify =
            notify.ok_or_else(|| Failure::new("the supervisor's socket was not passed"))?;
        let notify = UnixDatagram::from(notify.try_clone().map_err(Failure::new)?);
        let mut starter = kept.remove(STARTER).unwrap_or_default();
        let handler = starter.pop().map(Process::starter);
        let handler = handler.ok_or_else(|| Failure::new("the handler did not pass its pidfd"))?;
        Ok(Self::of(path, kept, notify, handler, Stop::take_every()))
    }

    fn of(path: PathBuf, kept: Kept, notify: UnixDatagram, handler: Process, stop: Stop) -> Self {
        Self {
            path,
            kept,
            notify,
            handler,
            stop,
            failed: 0,
            is_stopping: false,
            asked: None,
            is_successor: false,
        }
    }

    /// Holds and starts, until a handler has ended by itself.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        loop {
            let mut ready = [
                PollFd::new(&self.notify, PollFlags::IN),
                PollFd::new(self.handler.pidfd(), PollFlags::IN),
            ];
            match poll(&mut ready, Some(&TICK)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Failure::new(error)),
            }
            // Looked at before the messages: a handler that has ended sends none.
            let has_ended = self.handler.has_ended();
            self.receive();
            if has_ended && let Some(code) = self.ended() {
                return self.end(code);
            }
            match self.stop.signal_within(Duration::ZERO) {
                // The next handler goes on, from the program's present file.
                Some(Signal::SIGUSR2) => self.signal(rustix::process::Signal::KILL),
                Some(Signal::SIGINT) => self.ask(rustix::process::Signal::INT),
                Some(_) => self.ask(rustix::process::Signal::TERM),
                None => {}
            }
        }
    }

    fn ask(&mut self, signal: rustix::process::Signal) {
        self.asked = Some(signal);
        self.is_successor = false;
        self.signal(signal);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        // Fails only if it has ended.
        let _ = pidfd_send_signal(self.handler.pidfd(), signal);
    }

    /// Starts the next handler, unless the last one has ended by itself: then its exit code.
    fn ended(&mut self) -> Option<u8> {
        let status = self.handler.status();
        let code = status.and_then(|status| status.code());
        let has_vms = self.kept.keys().any(|name| !SHARED.contains(&name.as_str()));
        let has_died_of_it = self.asked.is_some() && code.is_none() && !has_vms;
        if self.is_stopping || code == Some(0) || has_died_of_it {
            return Some(0);
        }
        self.failed += 1;
        // What it could not do at first, another cannot either.
        let is_hopeless = code.is_some() && self.failed == 1 && !has_vms;
        while !is_hopeless && self.failed <= ATTEMPTS {
            say(format_args!(
                "the handler has ended ({}): starting another",
                status.map_or("killed".to_owned(), |status| status.to_string())
            ));
            if self.failed > 1 {
                std::thread::sleep(PAUSE * 2_u32.pow(self.failed - 2));
            }
            match Process::start("handler", &self.path, &self.kept) {
                Ok(handler) => {
                    self.handler = handler;
                    self.is_successor = self.asked.is_some();
                    return None;
                }
                Err(error) => {
                    say(format_args!("warning: a handler cannot be started: {error}"));
                    self.failed += 1;
                }
            }
        }
        // The guard ends the VMMs.
        Some(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
    }

    /// Ends as the handler has.
    fn end(self, code: u8) -> Result<(), Failure> {
        let _ = fs::remove_file(&self.path);
        drop(self);
        match code {
            0 => Ok(()),
            // The handler has said why.
            code => std::process::exit(code.into()),
        }
    }

    /// Takes the messages that have come.
    fn receive(&mut self) {
        loop {
            let mut bytes = [0; MAX_MESSAGE];
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut slices = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let received = match recvmsg(&self.notify, &mut slices, &mut ancillary, flags) {
                Err(Errno::INTR) => continue,
                Err(_) => return,
                Ok(received) => received,
            };
            let mut descriptors = Vec::new();
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    descriptors.extend(rights);
                }
            }
            if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                continue;
            }
            let text = bytes.get(..received.bytes).unwrap_or_default();
            self.take(&String::from_utf8_lossy(text), descriptors);
        }
    }

    /// Does what a message says (sd_notify(3), sd_pid_notify_with_fds(3)).
    fn take(&mut self, message: &str, descriptors: Vec<OwnedFd>) {
        let says = |what: &str| message.lines().any(|line| line == what);
        let name = message.lines().find_map(|line| line.strip_prefix("FDNAME="));
        let name = name.unwrap_or("stored").to_owned();
        if says("READY=1") {
            self.failed = 0;
            // The handler that was asked has died since.
            if let Some(signal) = self.asked.filter(|_| self.is_successor) {
                self.signal(signal);
            }
        }
        self.is_stopping |= says("STOPPING=1");
        if says("FDSTOREREMOVE=1") {
            self.kept.remove(&name);
        } else if says("FDSTORE=1") && self.kept.len() < MAX_NAMES {
            self.kept.insert(name, descriptors);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};
    use std::os::fd::AsFd;

    #[test]
    fn messages_are_those_of_systemd() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
        let stop = Stop::take_every();
        let handler = Process::starter(own);
        let mut supervisor = Supervisor::of(path, Kept::new(), notify, handler, stop);
        supervisor.failed = 3;
        let two =
            || vec![tempfile::tempfile().unwrap().into(), tempfile::tempfile().unwrap().into()];
        supervisor.take("FDSTORE=1\nFDNAME=vm1\n", two());
        supervisor.take("READY=1\nSTATUS=x\n", Vec::new());
        supervisor.take("FDSTORE=1\nFDNAME=vm2\nFDPOLL=0\n", two());
        assert_eq!(supervisor.kept.keys().collect::<Vec<_>>(), ["vm1", "vm2"]);
        assert_eq!((supervisor.kept["vm2"].len(), supervisor.failed), (2, 0));
        supervisor.take("FDSTOREREMOVE=1\nFDNAME=vm1\n", Vec::new());
        assert_eq!(supervisor.kept.keys().collect::<Vec<_>>(), ["vm2"]);
        assert!(!supervisor.is_stopping);
        supervisor.take("STOPPING=1", Vec::new());
        assert!(supervisor.is_stopping);
        // Nothing that is sent ends it.
        supervisor.take("FDSTORE=1\nFDNAME=\n\n=\u{fffd}", Vec::new());
        assert!(supervisor.notify.as_fd().try_clone_to_owned().is_ok());
    }
}
