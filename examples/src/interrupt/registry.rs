//! The list of what is to be undone if the process ends now.
//!
//! Whatever is entered is made while the list is locked, so that a signal finds either neither or
//! both. From the signal on the list stays locked, and nothing new can be made.

use super::guard::Guard;
use super::undo::Undo;
use crate::stdio::say;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

static REGISTRY: Mutex<Registry> = Mutex::new(Registry::new());

struct Registry {
    next: u64,
    armed: BTreeMap<u64, Undo>,
    guard: Guard,
}

impl Registry {
    const fn new() -> Self {
        Self { next: 0, armed: BTreeMap::new(), guard: Guard::none() }
    }

    fn arm(&mut self, undo: Undo) -> Armed {
        let number = self.next;
        self.next += 1;
        self.guard.arm(number, &undo);
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
    // What is in the list is whole whatever happened to a thread that held it.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn perform(undo: &Undo) {
    if let Err(error) = undo.perform() {
        say(undo.failure(&error));
    }
}

/// Something that is undone when this value goes, or when a signal ends the process before that.
#[derive(Debug)]
#[must_use]
pub(crate) struct Armed(Option<u64>);

impl Armed {
    /// Nothing is to be undone any more.
    pub(crate) fn disarm(mut self) {
        self.forget();
    }

    /// Does `last`, and if it succeeds nothing is to be undone any more. No signal comes between.
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
        // On the list until it is done, for a signal may come meanwhile.
        let undo = lock().armed.get(&number).cloned();
        if let Some(undo) = undo {
            perform(&undo);
        }
        self.forget();
    }
}

/// Makes something that `undo` undoes. A process that is killed leaves it.
pub(crate) fn arm_after<T, E>(
    make: impl FnOnce() -> Result<(T, Undo), E>,
) -> Result<(T, Armed), E> {
    let mut registry = lock();
    let (made, undo) = make()?;
    Ok((made, registry.arm(undo)))
}

/// Enters `undo` and does what it undoes, also if the process is killed.
pub(crate) fn arm_with<T, E>(
    undo: Undo,
    make: impl FnOnce() -> Result<T, E>,
) -> Result<(T, Armed), E> {
    let mut registry = lock();
    registry.guard.start();
    let mut armed = registry.arm(undo);
    let made = make();
    if made.is_err()
        && let Some(number) = armed.0.take()
    {
        registry.forget(number);
    }
    Ok((made?, armed))
}

/// Does something that no signal interrupts; it must be short.
pub(crate) fn uninterrupted<T>(work: impl FnOnce() -> T) -> T {
    let _registry = lock();
    work()
}

/// Undoes everything, the last first. Nothing can be entered any more, or be taken off.
pub(super) fn undo_all() {
    let mut registry = lock();
    while let Some((number, undo)) = registry.armed.pop_last() {
        perform(&undo);
        registry.guard.forget(number);
    }
    std::mem::forget(registry);
}

/// A folder for what only this process needs: for sockets, mounts, and programs that want names. It
/// goes with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _armed: Armed,
}

impl Scratch {
    /// Makes one among the system's temporary files.
    pub(crate) fn new(prefix: &str) -> io::Result<Self> {
        Self::within(&std::env::temp_dir(), prefix)
    }

    /// Makes one in `folder`.
    pub(crate) fn within(folder: &Path, prefix: &str) -> io::Result<Self> {
        let folder = std::path::absolute(folder)?;
        // Its name is not known before it is made.
        let name = random_name(prefix)?;
        let path = folder.join(name);
        let make = || private_folder(&path);
        let ((), armed) = arm_with(Undo::Remove(path.clone()), make)?;
        Ok(Self { path, _armed: armed })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// `PREFIX` and 48 random bits, and an error if there is such a folder.
fn random_name(prefix: &str) -> io::Result<String> {
    let id = kaleidoscope_core::clone::CloneId::random().map_err(io::Error::other)?;
    // Short, because sockets in it have paths of at most 108 bytes.
    Ok(id
        .to_string()
        .chars()
        .take(12)
        .fold(prefix.to_owned(), |name, digit| name + digit.encode_utf8(&mut [0; 4])))
}

/// Makes a folder that is its owner's alone, and that was not there before.
fn private_folder(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().mode(0o700).create(path)
}
