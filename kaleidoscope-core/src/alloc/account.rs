//! One clone's account.

use super::balance::SharedBalance;
use super::pressure::{Marks, Pressure};
use super::{CHUNK_FRAMES, CloneLimits};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Called with the new level when the pressure changes.
pub(super) type Callback = dyn Fn(Pressure) + Send + Sync;

/// One clone's account, shared by its reservation and its host.
#[derive(Debug)]
pub(super) struct Account {
    /// Its key in the host's table of accounts.
    pub(super) serial: u64,
    pub(super) limits: CloneLimits,
    pub(super) marks: Marks,
    pub(super) balance: SharedBalance,
    /// The maximum of the clone's own level and the host's.
    level: AtomicU8,
    /// The clone's own level. The lock also orders changes of `level`.
    own: Mutex<Pressure>,
    is_queued: AtomicBool,
    listeners: Mutex<Vec<Listener>>,
}

struct Listener {
    callback: Arc<Callback>,
    /// The level of the last call.
    notified: Pressure,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("notified", &self.notified).finish_non_exhaustive()
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

    /// Recomputes the level; `host` returns the host's level. Returns whether the level changed.
    pub(super) fn refresh(&self, host: impl Fn() -> Pressure) -> bool {
        let mut own = self.own.lock();
        *own = self.marks.level(*own, self.balance.get().used);
        // `host` is read under the lock: of two threads, the second sees the level that the first
        // saw, or a newer one.
        let level = host().max(*own);
        self.level.swap(level as u8, Ordering::AcqRel) != level as u8
    }

    /// Removes whole spare chunks, but keeps `keep` of them. Returns the number of frames removed.
    pub(super) fn take_surplus(&self, keep: u64) -> u64 {
        let changed = self.balance.change(|balance| {
            let after = balance.without_surplus(keep);
            (after != balance).then_some(after)
        });
        changed.map_or(0, |(before, after)| (before.chunks - after.chunks) * CHUNK_FRAMES)
    }

    /// Marks the account as queued. Returns false if it was queued already.
    pub(super) fn enqueue(&self) -> bool {
        !self.is_queued.swap(true, Ordering::AcqRel)
    }

    /// Marks the account as not queued. A later change of the level queues it again.
    pub(super) fn dequeue(&self) {
        // A swap instead of a store: a thread that found the account queued changed the level
        // before its swap in `enqueue`, and this swap makes that level visible to the load in
        // `notify`.
        self.is_queued.swap(false, Ordering::AcqRel);
    }

    pub(super) fn listen(&self, callback: Box<Callback>) {
        self.listeners
            .lock()
            .push(Listener { callback: callback.into(), notified: Pressure::None });
    }

    /// Calls each listener whose last level differs from the current one.
    pub(super) fn notify(&self) {
        while let Some((callback, level)) = self.next_to_notify() {
            callback(level);
        }
    }

    fn next_to_notify(&self) -> Option<(Arc<Callback>, Pressure)> {
        let mut listeners = self.listeners.lock();
        let level = self.level();
        let listener = listeners.iter_mut().find(|listener| listener.notified != level)?;
        listener.notified = level;
        Some((Arc::clone(&listener.callback), level))
    }

    /// Removes all listeners.
    pub(super) fn clear_listeners(&self) {
        let listeners = std::mem::take(&mut *self.listeners.lock());
        // Dropped without the lock: the destructor of a callback may call into this account.
        drop(listeners);
    }
}
