//! vCPUs that wait for frames: the counterpart of userfaultfd's wait queue in the kernel.

use kaleidoscope_core::addr::FrameIndex;
use parking_lot::{Condvar, Mutex};
use std::time::Instant;

/// The vCPUs that wait for frames.
#[derive(Default)]
pub(super) struct WaitQueue {
    list: Mutex<Waiters>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiters {
    waiting: Vec<Waiter>,
    next_ticket: u64,
    is_closed: bool,
}

struct Waiter {
    frame: FrameIndex,
    ticket: u64,
    is_woken: bool,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WaitOutcome {
    /// The waiter was woken, or did not have to wait.
    Woken,
    /// No wake-up came before the deadline.
    TimedOut,
    /// The memory was closed.
    Closed,
}

impl WaitQueue {
    /// WaitQueue until the frame's waiters are woken. `enter` is called under the lock, so that no
    /// wake-up is lost between it and the wait; it returns whether to wait at all.
    pub(super) fn wait(
        &self,
        frame: FrameIndex,
        deadline: Instant,
        enter: impl FnOnce() -> bool,
    ) -> WaitOutcome {
        let mut list = self.list.lock();
        if list.is_closed {
            return WaitOutcome::Closed;
        }
        if !enter() {
            return WaitOutcome::Woken;
        }
        let ticket = list.next_ticket;
        list.next_ticket += 1;
        list.waiting.push(Waiter { frame, ticket, is_woken: false });
        loop {
            let at = list.waiting.iter().position(|w| w.ticket == ticket);
            let is_woken = at.and_then(|at| list.waiting.get(at)).is_none_or(|w| w.is_woken);
            let is_late = !is_woken && Instant::now() >= deadline;
            if is_woken || is_late || list.is_closed {
                if let Some(at) = at {
                    list.waiting.swap_remove(at);
                }
                return match (is_woken, list.is_closed) {
                    (true, _) => WaitOutcome::Woken,
                    (false, true) => WaitOutcome::Closed,
                    (false, false) => WaitOutcome::TimedOut,
                };
            }
            self.changed.wait_until(&mut list, deadline);
        }
    }

    /// Wakes the waiters of a range of frames; returns how many there were.
    pub(super) fn wake(&self, frames: std::ops::Range<u32>) -> usize {
        let mut list = self.list.lock();
        let mut woken = 0;
        for waiting in &mut list.waiting {
            if frames.contains(&waiting.frame.0) && !waiting.is_woken {
                waiting.is_woken = true;
                woken += 1;
            }
        }
        drop(list);
        if woken > 0 {
            self.changed.notify_all();
        }
        woken
    }

    /// Wakes all waiters; later waits return at once.
    pub(super) fn close(&self) {
        self.list.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The frames that are waited for, one entry per waiter.
    pub(super) fn frames(&self) -> Vec<FrameIndex> {
        self.list.lock().waiting.iter().filter(|w| !w.is_woken).map(|w| w.frame).collect()
    }
}
