//! Delivery of pressure changes to clones.

use super::account::Account;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Queue of clones to notify, and whether a thread is delivering.
///
/// One thread at a time runs callbacks; other threads queue their clones for it. So callbacks of a
/// host are serialized, and a callback that returns frames, which may change the pressure again, is
/// not reentered.
#[derive(Debug, Default)]
pub(super) struct Deliveries(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<Account>>,
    is_busy: bool,
}

impl Deliveries {
    /// Queues a clone to be notified, unless it is queued already.
    pub(super) fn push(&self, account: &Arc<Account>) {
        if account.enqueue() {
            self.0.lock().waiting.push_back(Arc::clone(account));
        }
    }

    /// Notifies all queued clones, unless another thread is doing so. Call it without a lock.
    pub(super) fn run(&self) {
        {
            let mut queue = self.0.lock();
            if queue.is_busy || queue.waiting.is_empty() {
                return;
            }
            queue.is_busy = true;
        }
        // If a callback panics, the guard lets another thread deliver the rest.
        let guard = DeliveryGuard(&self.0);
        while let Some(account) = guard.next() {
            account.dequeue();
            account.notify();
        }
    }
}

/// Held by the thread that delivers.
struct DeliveryGuard<'a>(&'a Mutex<Queue>);

impl DeliveryGuard<'_> {
    /// The next clone. `is_busy` is cleared under the same lock that finds the queue empty, so no
    /// clone is left behind.
    fn next(&self) -> Option<Arc<Account>> {
        let mut queue = self.0.lock();
        let next = queue.waiting.pop_front();
        queue.is_busy = next.is_some();
        next
    }
}

impl Drop for DeliveryGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().is_busy = false;
        }
    }
}
