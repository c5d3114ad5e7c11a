//! The list of cleanup actions to perform if a signal ends the process.
//!
//! A thing is created and its cleanup action is entered under one lock, so that a signal finds
//! either both or neither. After the signal the list stays locked, and nothing new can be created.

use super::guard::Guard;
use super::undo::Undo;
use crate::stdio::say;
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

static REGISTRY: Mutex<Registry> = Mutex::new(Registry::new());

struct Registry {
    next: u64,
    /// The lowest number of this process.
    first: u64,
    armed: BTreeMap<u64, Undo>,
    /// Actions that only the guard performs.
    entrusted: BTreeMap<u64, Undo>,
    guard: Guard,
    /// Another process holds an end of the guard's pipe: no guard is this process's alone.
    is_shared: bool,
}

impl Registry {
    const fn new() -> Self {
        Self {
            next: 0,
            first: 0,
            armed: BTreeMap::new(),
            entrusted: BTreeMap::new(),
            guard: Guard::none(),
            is_shared: false,
        }
    }

    /// Starts a guard, unless there is one, or another process has to know of it.
    fn start_guard(&mut self) {
        if !self.is_shared {
            self.guard.start();
        }
    }

    /// A number for an action, which the guard knows from here on.
    fn announce(&mut self, undo: &Undo) -> u64 {
        let number = self.next;
        self.next += 1;
        self.guard.arm(number, undo);
        number
    }

    fn arm(&mut self, undo: Undo) -> Armed {
        let number = self.announce(&undo);
        self.armed.insert(number, undo);
        Armed(Some(number))
    }

    fn forget(&mut self, number: u64) -> Option<Undo> {
        let undo = self.armed.remove(&number);
        self.guard.forget(number);
        undo
    }
}

fn lock() -> MutexGuard<'static, Registry> {
    // The list is consistent even if a thread panicked while holding the lock.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn perform(undo: &Undo) {
    if let Err(error) = undo.perform() {
        say(undo.failure(&error));
    }
}

/// A registered cleanup action. It is performed when this value is dropped, or when a signal ends
/// the process before.
#[derive(Debug)]
#[must_use]
pub(crate) struct Armed(Option<u64>);

impl Armed {
    /// Removes the action without performing it.
    pub(crate) fn disarm(mut self) {
        self.forget();
    }

    /// Runs `last`, and removes the action if `last` succeeds. Signals are held off meanwhile.
    pub(crate) fn disarm_with<T, E>(mut self, last: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let mut registry = lock();
        let done = last()?;
        if let Some(number) = self.0.take() {
            registry.forget(number);
        }
        Ok(done)
    }

    fn forget(&mut self) -> Option<Undo> {
        self.0.take().and_then(|number| lock().forget(number))
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        let Some(number) = self.0 else { return };
        // Stays on the list until it is done, because a signal may come meanwhile.
        let undo = lock().armed.get(&number).cloned();
        if let Some(undo) = undo {
            perform(&undo);
        }
        self.forget();
    }
}

/// Runs `make`, and registers the cleanup action that it returns. If the process is killed in
/// between, the action is not performed.
pub(crate) fn arm_after<T, E>(
    make: impl FnOnce() -> Result<(T, Undo), E>,
) -> Result<(T, Armed), E> {
    let mut registry = lock();
    let (made, undo) = make()?;
    Ok((made, registry.arm(undo)))
}

/// Registers `undo`, then runs `make`. The action is performed even if the process is killed.
pub(crate) fn arm_with<T, E>(
    undo: Undo,
    make: impl FnOnce() -> Result<T, E>,
) -> Result<(T, Armed), E> {
    let mut registry = lock();
    registry.start_guard();
    let mut armed = registry.arm(undo);
    let made = make();
    if made.is_err()
        && let Some(number) = armed.0.take()
    {
        registry.forget(number);
    }
    Ok((made?, armed))
}

/// Has another process end with this one. `None` if it has ended, or its number is not known here
/// (another PID namespace).
pub(crate) fn arm_end(pid: u32, process: BorrowedFd<'_>) -> io::Result<Option<Armed>> {
    let Some(undo) = Undo::end_process(pid, process)? else { return Ok(None) };
    let ((), armed) = arm_with(undo, || Ok::<_, io::Error>(()))?;
    Ok(Some(armed))
}

/// A cleanup action that only the guard performs: when this process and those that carry on for it
/// have all died.
#[derive(Debug)]
#[must_use]
pub(crate) struct Entrusted(u64);

/// Has the guard perform `undo` when all have died that share it.
pub(crate) fn entrust(undo: Undo) -> Entrusted {
    let mut registry = lock();
    registry.start_guard();
    let number = registry.announce(&undo);
    registry.entrusted.insert(number, undo);
    Entrusted(number)
}

impl Entrusted {
    /// Performs the action now.
    pub(crate) fn perform(self) {
        let undo = lock().entrusted.get(&self.0).cloned();
        if let Some(undo) = undo {
            perform(&undo);
        }
        self.forget();
    }

    /// Removes the action without performing it.
    pub(crate) fn forget(self) {
        let mut registry = lock();
        registry.entrusted.remove(&self.0);
        registry.guard.forget(self.0);
    }
}

/// An end of the guard's pipe, for another process that carries on when this one dies: the guard
/// performs its actions when both have died.
pub(crate) fn share_guard() -> io::Result<Option<OwnedFd>> {
    let mut registry = lock();
    registry.start_guard();
    registry.is_shared = true;
    registry.guard.share()
}

/// Uses the guard that another process shared and died. Its actions stay armed until they are
/// [forgotten](forget_predecessor).
pub(crate) fn adopt_guard(pipe: OwnedFd) {
    let mut registry = lock();
    registry.guard.adopt(pipe);
    registry.is_shared = true;
    // The other process counted from an earlier instant, and slower than the clock.
    let now = clock_gettime(ClockId::Boottime);
    let nanos = Duration::try_from(now).map_or(u128::from(u64::MAX >> 1), |now| now.as_nanos());
    registry.next = u64::try_from(nanos).unwrap_or(u64::MAX >> 1);
    registry.first = registry.next;
}

/// If the shared guard has died, starts another, which knows all actions of this process. Returns
/// an end of its pipe, which has to be shared as the first one's was.
pub(crate) fn replace_guard() -> io::Result<Option<OwnedFd>> {
    let mut registry = lock();
    if !registry.is_shared || !registry.guard.is_lost() {
        return Ok(None);
    }
    registry.guard.give_up();
    registry.guard.start();
    let Registry { armed, entrusted, guard, .. } = &mut *registry;
    armed.iter().chain(entrusted.iter()).for_each(|(number, undo)| guard.arm(*number, undo));
    registry.guard.share()
}

/// Has the guard forget the actions of the process that shared it: this one has armed its own.
pub(crate) fn forget_predecessor() {
    let mut registry = lock();
    let first = registry.first;
    registry.guard.forget_below(first);
}

/// Runs `work` while signals are held off. `work` must be short.
pub(crate) fn uninterrupted<T>(work: impl FnOnce() -> T) -> T {
    let _registry = lock();
    work()
}

/// Performs all actions, the last one first. Afterwards the list stays locked.
pub(super) fn undo_all() {
    let mut registry = lock();
    while let Some((number, undo)) = registry.armed.pop_last() {
        perform(&undo);
        // QEMU may read nothing before this process and its connection end: then the guard has the
        // VM run on. Twice does no harm.
        if !matches!(undo, Undo::Resume { .. }) {
            registry.guard.forget(number);
        }
    }
    std::mem::forget(registry);
}

/// A temporary folder for sockets, mounts and files that need names. It is removed when the process
/// ends, even by SIGKILL.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _armed: Armed,
}

impl Scratch {
    /// Makes a folder in the system's folder for temporary files.
    pub(crate) fn new(prefix: &str) -> io::Result<Self> {
        Self::within(&std::env::temp_dir(), prefix)
    }

    /// Makes a folder in `folder`.
    pub(crate) fn within(folder: &Path, prefix: &str) -> io::Result<Self> {
        let folder = std::path::absolute(folder)?;
        // The name is random, so that other users cannot predict it.
        let name = random_name(prefix)?;
        let path = folder.join(name);
        let make = || private_folder(&path);
        let ((), armed) = arm_with(Undo::Remove(path.clone()), make)?;
        Ok(Self { path, _armed: armed })
    }

    /// The folder's absolute path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// `prefix` and 48 random bits in hexadecimal.
fn random_name(prefix: &str) -> io::Result<String> {
    let id = kaleidoscope_core::clone::CloneId::random().map_err(io::Error::other)?;
    // Short, because a Unix socket's path has at most 108 bytes.
    Ok(id
        .to_string()
        .chars()
        .take(12)
        .fold(prefix.to_owned(), |name, digit| name + digit.encode_utf8(&mut [0; 4])))
}

/// Makes a folder that only its owner can access. Fails if the path exists.
fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}
