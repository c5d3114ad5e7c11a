//! Who waits for pages, and who receives them.
//!
//! No thread is kept for receiving: of the threads that wait for a page, one receives for all. A
//! fault that is alone thus takes its page from the source with its own hands, without a second
//! thread to wake. Who leaves hands the role on.

use crate::sync::{Condvar, Mutex};
use std::time::Duration;

/// Threads that wait, and the role of the receiver.
#[derive(Debug)]
pub(crate) struct Waiters {
    inner: Mutex<Inner>,
    /// Faults wait here for a page, or for the role.
    changed: Condvar,
    /// The streaming thread waits here for work, or for the role.
    kicked: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// Somebody receives.
    receiving: bool,
    /// Faults asleep.
    sleeping_faults: usize,
    /// The streaming thread is asleep.
    streamer_asleep: bool,
    /// It is asleep until the role is free.
    streamer_wants_role: bool,
    /// There may be something to stream.
    has_work: bool,
}

/// The right to receive; given up on drop.
#[must_use]
#[derive(Debug)]
pub(crate) struct ReceiverRole<'a> {
    waiters: &'a Waiters,
}

impl Waiters {
    pub(crate) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner::default()),
            changed: Condvar::new(),
            kicked: Condvar::new(),
        }
    }

    /// Takes the role of the receiver unless somebody has it.
    pub(crate) fn try_receive(&self) -> Option<ReceiverRole<'_>> {
        let mut inner = self.inner.lock();
        if inner.receiving {
            return None;
        }
        inner.receiving = true;
        Some(ReceiverRole { waiters: self })
    }

    /// Waits until woken, for at most `at_most`, unless the role is free or `is_over` says that there
    /// is no need to. Every change that makes `is_over` true must be followed by
    /// [`Waiters::wake`].
    pub(crate) fn wait(&self, at_most: Duration, is_over: impl Fn() -> bool) {
        let mut inner = self.inner.lock();
        if !inner.receiving || is_over() {
            return;
        }
        inner.sleeping_faults += 1;
        inner = self.changed.wait_for(inner, at_most);
        inner.sleeping_faults -= 1;
    }

    /// Wakes the faults that wait: something changed for one of them.
    pub(crate) fn wake(&self) {
        if self.inner.lock().sleeping_faults > 0 {
            self.changed.notify_all();
        }
    }

    /// The streaming thread waits for at most `at_most` for work; with `or_role` also until the
    /// role is free. Returns whether there may be work.
    pub(crate) fn wait_for_work(&self, at_most: Duration, or_role: bool) -> bool {
        let mut inner = self.inner.lock();
        if !inner.has_work && (inner.receiving || !or_role) {
            inner.streamer_asleep = true;
            inner.streamer_wants_role = or_role;
            inner = self.kicked.wait_for(inner, at_most);
            inner.streamer_asleep = false;
        }
        std::mem::take(&mut inner.has_work)
    }

    /// There is something to stream.
    pub(crate) fn kick(&self) {
        let mut inner = self.inner.lock();
        inner.has_work = true;
        if inner.streamer_asleep {
            self.kicked.notify_all();
        }
    }
}

impl Drop for ReceiverRole<'_> {
    fn drop(&mut self) {
        let mut inner = self.waiters.inner.lock();
        inner.receiving = false;
        // Faults first; the streaming thread looks whether pages are still to come.
        if inner.sleeping_faults > 0 {
            self.waiters.changed.notify_all();
        } else if inner.streamer_asleep && inner.streamer_wants_role {
            self.waiters.kicked.notify_all();
        }
    }
}
