//! Telling clones of a new level of pressure.

use super::account::Account;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

/// Clones that are to be told, and whether a thread is telling them.
///
/// One thread tells at a time, and others leave their news to it. So callbacks come in order, and
/// one that gives frames back, which may be news again, is not called inside itself.
#[derive(Debug, Default)]
pub(super) struct Deliveries(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Arc<Account>>,
    is_busy: bool,
}

impl Deliveries {
    /// Notes that a clone is to be told. At most once at a time; a account knows whether it is in
    /// the queue.
    pub(super) fn push(&self, account: &Arc<Account>) {
        if account.enqueue() {
            self.0.lock().waiting.push_back(Arc::clone(account));
        }
    }

    /// Tells all that wait, unless another thread does. Call it without a lock.
    pub(super) fn run(&self) {
        {
            let mut queue = self.0.lock();
            if queue.is_busy || queue.waiting.is_empty() {
                return;
            }
            queue.is_busy = true;
        }
        // If a callback panics, somebody else tells the others.
        let busy = Busy(&self.0);
        while let Some(account) = busy.next() {
            account.dequeue();
            account.tell();
        }
    }
}

/// This thread tells.
struct Busy<'a>(&'a Mutex<Queue>);

impl Busy<'_> {
    /// The next one; with none left, this thread has told all when the lock opens again.
    fn next(&self) -> Option<Arc<Account>> {
        let mut queue = self.0.lock();
        let next = queue.waiting.pop_front();
        queue.is_busy = next.is_some();
        next
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().is_busy = false;
        }
    }
}
