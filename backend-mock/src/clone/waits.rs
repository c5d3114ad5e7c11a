//! vCPUs that wait for frames: the mock's counterpart of a kernel's wait queue.

use kaleidoscope_core::addr::FrameIndex;
use parking_lot::{Condvar, Mutex};
use std::time::Instant;

/// Who waits for which frame.
#[derive(Default)]
pub(super) struct Waits {
    list: Mutex<List>,
    changed: Condvar,
}

#[derive(Default)]
struct List {
    waiting: Vec<Waiting>,
    next_ticket: u64,
    is_closed: bool,
}

struct Waiting {
    frame: FrameIndex,
    ticket: u64,
    is_woken: bool,
}

/// How a wait ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waited {
    /// Somebody woke it, or there was nothing to wait for.
    Woken,
    /// Nobody woke it in time.
    TimedOut,
    /// The memory is closed.
    Closed,
}

impl Waits {
    /// Waits until somebody wakes the frame's waiters. `enter` is called once the wait counts, so
    /// that no wake-up is lost between it and the wait; it returns whether to wait at all.
    pub(super) fn wait(
        &self,
        frame: FrameIndex,
        deadline: Instant,
        enter: impl FnOnce() -> bool,
    ) -> Waited {
        let mut list = self.list.lock();
        if list.is_closed {
            return Waited::Closed;
        }
        if !enter() {
            return Waited::Woken;
        }
        let ticket = list.next_ticket;
        list.next_ticket += 1;
        list.waiting.push(Waiting { frame, ticket, is_woken: false });
        loop {
            let at = list.waiting.iter().position(|w| w.ticket == ticket);
            let is_woken = at.and_then(|at| list.waiting.get(at)).is_none_or(|w| w.is_woken);
            let is_late = !is_woken && Instant::now() >= deadline;
            if is_woken || is_late || list.is_closed {
                if let Some(at) = at {
                    list.waiting.swap_remove(at);
                }
                return match (is_woken, list.is_closed) {
                    (true, _) => Waited::Woken,
                    (false, true) => Waited::Closed,
                    (false, false) => Waited::TimedOut,
                };
            }
            self.changed.wait_until(&mut list, deadline);
        }
    }

    /// Wakes those who wait for any of the frames; how many there were.
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

    /// Wakes everybody, for good.
    pub(super) fn close(&self) {
        self.list.lock().is_closed = true;
        self.changed.notify_all();
    }

    /// The frames that somebody waits for.
    pub(super) fn frames(&self) -> Vec<FrameIndex> {
        self.list.lock().waiting.iter().filter(|w| !w.is_woken).map(|w| w.frame).collect()
    }
}
