//! One clone's account.

use super::balance::SharedBalance;
use super::pressure::{Marks, Pressure};
use super::{CHUNK_FRAMES, CloneLimits};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// What is called when the level changes.
pub(super) type Callback = dyn Fn(Pressure) + Send + Sync;

/// One clone's account, shared by its reservation and its host.
#[derive(Debug)]
pub(super) struct Account {
    /// Its number with the host.
    pub(super) serial: u64,
    pub(super) limits: CloneLimits,
    pub(super) marks: Marks,
    pub(super) balance: SharedBalance,
    /// The higher one of the clone's own level and the host's.
    level: AtomicU8,
    /// The clone's own level. The lock also orders changes of `level`.
    own: Mutex<Pressure>,
    is_queued: AtomicBool,
    listeners: Mutex<Vec<Listener>>,
}

struct Listener {
    callback: Arc<Callback>,
    /// What it was told last.
    told: Pressure,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("told", &self.told).finish_non_exhaustive()
    }
}

impl Account {
    pub(super) fn new(serial: u64, limits: CloneLimits) -> Self {
        Self {
            serial,
            limits,
            marks: limits.marks(),
            balance: SharedBalance::default(),
            level: AtomicU8::new(Pressure::None as u8),
            own: Mutex::new(Pressure::None),
            is_queued: AtomicBool::new(false),
            listeners: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn level(&self) -> Pressure {
        Pressure::from_u8(self.level.load(Ordering::Acquire))
    }

    /// Computes the level anew; `host` reads the host's. Returns whether it changed.
    pub(super) fn refresh(&self, host: impl Fn() -> Pressure) -> bool {
        let mut own = self.own.lock();
        *own = self.marks.level(*own, self.balance.get().used);
        // Read under the lock: of two threads, the second one sees what the first one saw, or
        // something newer.
        let level = host().max(*own);
        self.level.swap(level as u8, Ordering::AcqRel) != level as u8
    }

    /// Takes whole spare chunks out but for `keep`, and returns their number of frames.
    pub(super) fn take_surplus(&self, keep: u64) -> u64 {
        let changed = self.balance.change(|balance| {
            let after = balance.without_surplus(keep);
            (after != balance).then_some(after)
        });
        changed.map_or(0, |(before, after)| (before.chunks - after.chunks) * CHUNK_FRAMES)
    }

    /// Whether it was not in the queue; now it is.
    pub(super) fn enqueue(&self) -> bool {
        !self.is_queued.swap(true, Ordering::AcqRel)
    }

    /// It is out of the queue. News from now on put it there again.
    pub(super) fn dequeue(&self) {
        // A swap and not a store: whoever found it queued has changed the level before, which is
        // read after this.
        self.is_queued.swap(false, Ordering::AcqRel);
    }

    pub(super) fn listen(&self, callback: Box<Callback>) {
        self.listeners.lock().push(Listener { callback: callback.into(), told: Pressure::None });
    }

    /// Calls those who were told another level last than the one now.
    pub(super) fn tell(&self) {
        while let Some((callback, level)) = self.next_to_tell() {
            callback(level);
        }
    }

    fn next_to_tell(&self) -> Option<(Arc<Callback>, Pressure)> {
        let mut listeners = self.listeners.lock();
        let level = self.level();
        let listener = listeners.iter_mut().find(|listener| listener.told != level)?;
        listener.told = level;
        Some((Arc::clone(&listener.callback), level))
    }

    /// Calls nobody from now on.
    pub(super) fn silence(&self) {
        let listeners = std::mem::take(&mut *self.listeners.lock());
        // What a callback owns may do anything when it is dropped: not under the lock.
        drop(listeners);
    }
}
