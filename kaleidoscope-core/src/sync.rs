//! Atomics and locks: the one place that names them, so that a model checker can stand in for them.
//!
//! Built with `--cfg loom`, everything that is synchronized through these types can be run under
//! [loom](https://docs.rs/loom), which tries every interleaving (`clone/engine/model.rs`).

#[cfg(loom)]
mod modeled {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
    pub(crate) use loom::sync::{MutexGuard, RwLockReadGuard, RwLockWriteGuard};
    use std::time::Duration;

    /// loom's mutex with the interface of `parking_lot`'s: a panicking holder ends the model
    /// anyway.
    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    /// loom's reader-writer lock with the interface of `parking_lot`'s.
    #[derive(Debug)]
    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }

        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner())
        }
    }

    /// loom's condition variable with the interface of `parking_lot`'s.
    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        /// Never times out: a model in which a thread waits for ever is a model that shows a lost
        /// wake-up.
        pub(crate) fn wait_for<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _at_most: Duration,
        ) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Ways to wait for other threads. A model has no time: all of them let the others run.
    pub(crate) mod wait {
        use std::time::Duration;

        pub(crate) fn spin(_times: u32) {
            loom::thread::yield_now();
        }

        pub(crate) fn yield_now() {
            loom::thread::yield_now();
        }

        pub(crate) fn sleep(_time: Duration) {
            loom::thread::yield_now();
        }
    }
}

#[cfg(not(loom))]
mod real {
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
    use std::time::Duration;

    /// A condition variable whose waits take the guard and give it back.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(parking_lot::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(parking_lot::Condvar::new())
        }

        /// Waits until notified, or for `at_most`.
        pub(crate) fn wait_for<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            at_most: Duration,
        ) -> MutexGuard<'a, T> {
            self.0.wait_for(&mut guard, at_most);
            guard
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Ways to wait for other threads.
    pub(crate) mod wait {
        pub(crate) use std::thread::{sleep, yield_now};

        /// Keeps the processor for about so many turns of a short loop.
        pub(crate) fn spin(times: u32) {
            (0..times).for_each(|_| std::hint::spin_loop());
        }
    }
}

#[cfg(loom)]
pub(crate) use modeled::*;
#[cfg(not(loom))]
pub(crate) use real::*;
