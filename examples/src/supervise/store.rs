//! The handler's side: descriptors that outlive it.

use super::process::{Kept, Process};
use super::{GUARD, NOTIFY, STARTER};
use crate::failure::Failure;
use crate::interrupt::{self, Entrusted, Undo};
use crate::stdio::say;
use parking_lot::Mutex;
use sd_notify::NotifyState;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

/// Descriptors that a supervisor holds copies of, by name.
#[derive(Debug)]
pub(crate) struct Store {
    kept: Mutex<Kept>,
    supervisor: Mutex<By>,
    /// Those that the former handler stored, until they are taken.
    inherited: Mutex<Kept>,
    /// Removes the supervisor's socket when both processes have died.
    socket: Mutex<Option<Entrusted>>,
}

/// What holds the copies.
#[derive(Debug)]
enum By {
    Nothing,
    Systemd,
    Process(Process),
}

impl Store {
    /// A store that holds nothing.
    pub(super) fn none() -> Self {
        Self::new(By::Nothing, Vec::new())
    }

    pub(super) fn of_systemd(passed: Vec<(String, OwnedFd)>) -> Result<Self, Failure> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Err(Failure::new("there is no NOTIFY_SOCKET").hint(
                "--supervisor systemd is for a unit of Type=notify with FileDescriptorStoreMax=",
            ));
        }
        Self::begin(By::Systemd, passed)
    }

    pub(super) fn of_supervisor(mut passed: Vec<(String, OwnedFd)>) -> Result<Self, Failure> {
        let starter = passed.iter().position(|(name, _)| name == STARTER);
        let starter =
            starter.ok_or_else(|| Failure::new("the supervisor did not pass its pidfd"))?;
        let (_, pidfd) = passed.swap_remove(starter);
        Self::begin(By::Process(Process::starter(pidfd)), passed)
    }

    fn new(by: By, passed: Vec<(String, OwnedFd)>) -> Self {
        let mut inherited = Kept::new();
        for (name, descriptor) in passed {
            inherited.entry(name).or_default().push(descriptor);
        }
        Self {
            kept: Mutex::default(),
            supervisor: Mutex::new(by),
            inherited: Mutex::new(inherited),
            socket: Mutex::default(),
        }
    }

    /// The guard performs its actions when this process and its supervisor have died.
    fn begin(by: By, passed: Vec<(String, OwnedFd)>) -> Result<Self, Failure> {
        let store = Self::new(by, passed);
        let failed = |error: io::Error| Failure::new(format_args!("the guard's pipe: {error}"));
        match store.take(GUARD).pop() {
            Some(pipe) => {
                store.remember(GUARD, vec![pipe.try_clone().map_err(failed)?]);
                interrupt::adopt_guard(pipe);
            }
            None => {
                if let Some(pipe) = interrupt::share_guard().map_err(failed)? {
                    store.put(GUARD, vec![pipe])?;
                }
            }
        }
        let notify = store.take(NOTIFY);
        if let (false, Some(path)) = (notify.is_empty(), std::env::var_os("NOTIFY_SOCKET")) {
            *store.socket.lock() = Some(interrupt::entrust(Undo::Remove(path.into())));
        }
        store.remember(NOTIFY, notify);
        Ok(store)
    }

    fn is_on(&self) -> bool {
        !matches!(*self.supervisor.lock(), By::Nothing)
    }

    fn remember(&self, name: &str, descriptors: Vec<OwnedFd>) {
        self.kept.lock().insert(name.to_owned(), descriptors);
    }

    /// The names of what the former handler stored and was not taken yet.
    pub(crate) fn names(&self) -> Vec<String> {
        self.inherited.lock().keys().cloned().collect()
    }

    /// Takes what the former handler stored. It stays stored until it is [removed](Self::remove).
    pub(crate) fn take(&self, name: &str) -> Vec<OwnedFd> {
        self.inherited.lock().remove(name).unwrap_or_default()
    }

    /// Takes what the former handler stored, and keeps it for the next: returns copies.
    pub(crate) fn take_on(&self, name: &str) -> io::Result<Vec<OwnedFd>> {
        let taken = self.take(name);
        let copies = taken.iter().map(OwnedFd::try_clone).collect();
        self.remember(name, taken);
        copies
    }

    /// Stores copies of descriptors, until they are removed.
    pub(crate) fn put(&self, name: &str, descriptors: Vec<OwnedFd>) -> Result<(), Failure> {
        if !self.is_on() {
            return Ok(());
        }
        let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
        // Without polling: a userfaultfd may look broken to it.
        let poll = NotifyState::Custom("FDPOLL=0");
        let state = [NotifyState::FdStore, NotifyState::FdName(name), poll];
        let stored = sd_notify::notify_with_fds(&state, &borrowed);
        // If the supervisor has died, the next one gets the copies.
        self.remember(name, descriptors);
        stored.map_err(|error| {
            Failure::new(format_args!("the supervisor does not store descriptors: {error}"))
        })
    }

    /// Removes descriptors.
    pub(crate) fn remove(&self, name: &str) {
        if self.kept.lock().remove(name).is_some() {
            self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
        }
    }

    /// The handler serves.
    pub(crate) fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// The handler has nothing more to serve: it is not to be started again.
    pub(crate) fn stopping(&self) {
        // The supervisor removes its socket.
        if let Some(socket) = self.socket.lock().take() {
            socket.forget();
        }
        self.tell(&[NotifyState::Stopping]);
    }

    fn tell(&self, state: &[NotifyState<'_>]) {
        if self.is_on() {
            // A supervisor that has died is replaced.
            let _ = sd_notify::notify(state);
        }
    }

    /// Replaces a supervisor that has died, and a guard. Returns whether there is another
    /// supervisor.
    pub(crate) fn tend(&self) -> bool {
        let is_replaced = self.replace_supervisor();
        if let Ok(Some(pipe)) = interrupt::replace_guard() {
            // In place of the former one's.
            self.remove(GUARD);
            if let Err(failure) = self.put(GUARD, vec![pipe]) {
                say(format_args!("warning: {failure}"));
            }
        }
        is_replaced
    }

    fn replace_supervisor(&self) -> bool {
        let mut supervisor = self.supervisor.lock();
        let By::Process(process) = &mut *supervisor else { return false };
        if !process.has_ended() {
            return false;
        }
        process.status();
        let Some(notify) = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from) else {
            return false;
        };
        // Held while it is copied: nothing is stored meanwhile.
        match Process::start("supervisor", &notify, &self.kept.lock()) {
            Ok(started) => {
                *supervisor = By::Process(started);
                true
            }
            Err(error) => {
                say(format_args!("warning: the supervisor has died, and none starts: {error}"));
                *supervisor = By::Nothing;
                false
            }
        }
    }
}
