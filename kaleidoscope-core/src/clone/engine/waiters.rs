//! Threads that wait for pages, and the receiver's role.
//!
//! There is no dedicated receiving thread: of the threads that wait for a page, one receives for
//! all. So a single fault reads its page from the source itself, and wakes no second thread. When
//! the receiving thread exits, a waiting thread takes over.

use crate::sync::{Condvar, Mutex};
use std::time::Duration;

/// Threads that wait, and the receiver's role.
#[derive(Debug)]
pub(crate) struct Waiters {
    inner: Mutex<Inner>,
    /// Fault threads wait here for a page, or for the role.
    changed: Condvar,
    /// The streaming thread waits here for work, or for the role.
    kicked: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    /// A thread has the receiver's role.
    receiving: bool,
    /// Number of fault threads that sleep.
    sleeping_faults: usize,
    /// The streaming thread sleeps.
    streamer_asleep: bool,
    /// The streaming thread also waits for the role.
    streamer_wants_role: bool,
    /// There may be something to stream.
    has_work: bool,
}

/// The receiver's role; released on drop.
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

    /// Takes the receiver's role; `None` when another thread has it.
    pub(crate) fn try_receive(&self) -> Option<ReceiverRole<'_>> {
        let mut inner = self.inner.lock();
        if inner.receiving {
            return None;
        }
        inner.receiving = true;
        Some(ReceiverRole { waiters: self })
    }

    /// Waits for at most `at_most` until woken. Returns at once if the role is free or `is_over`
    /// returns `true`. Every change that makes `is_over` true must be followed by
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

    /// Wakes all fault threads that wait, to check their frames again.
    pub(crate) fn wake(&self) {
        if self.inner.lock().sleeping_faults > 0 {
            self.changed.notify_all();
        }
    }

    /// The streaming thread waits for work, for at most `at_most`. With `or_role` it also wakes
    /// when the role becomes free. Returns whether there may be work.
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

    /// Gives the streaming thread work, and wakes it.
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
        // Fault threads take the role first. Without one, the streaming thread takes it if pages
        // are in flight.
        if inner.sleeping_faults > 0 {
            self.waiters.changed.notify_all();
        } else if inner.streamer_asleep && inner.streamer_wants_role {
            self.waiters.kicked.notify_all();
        }
    }
}
