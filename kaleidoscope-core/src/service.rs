//! Service threads and callbacks: a panic ends the service, with an error that its owner sees.
//!
//! A thread that dies silently leaves a service that looks alive while other threads wait for it.
//! So every thread of a service is [started here](spawn), with a function to call if it panics, and
//! callbacks of an embedder are [called here](contained) if their panic would leave an operation
//! half done.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use thiserror::Error;

/// A panic that was caught, as an error.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{what} panicked: {message}")]
pub struct Panicked {
    what: Arc<str>,
    message: Arc<str>,
}

impl Panicked {
    fn new(what: &str, payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self { what: what.into(), message: text.unwrap_or("without a message").into() }
    }

    /// The thread or callback that panicked.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The panic's message, if it is text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Calls `work` and returns its panic as an error. `what` names the work in the error.
///
/// The caller must end the service, so that no state that `work` left half done is used.
///
/// # Errors
/// [`Panicked`] if `work` panicked.
pub fn contained<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    // `parking_lot` locks are released during unwinding and are not poisoned. The service ends, so
    // the data under them is not used for long.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let panicked = Panicked::new(what, &*payload);
        // A payload may panic when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        panicked
    })
}

/// Starts a service thread with `stack` bytes of stack. If `work` panics, the thread calls
/// `panicked` before it ends. `panicked` must end the service and keep the error for the service's
/// owner.
///
/// # Errors
/// [`io::Error`] if the system cannot create the thread.
pub fn spawn(
    name: &str,
    stack: usize,
    work: impl FnOnce() + Send + 'static,
    panicked: impl FnOnce(Panicked) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let what = format!("the thread `{name}`");
    Builder::new().name(name.to_owned()).stack_size(stack).spawn(move || {
        if let Err(error) = contained(&what, work) {
            panicked(error);
        }
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_panic_of_a_thread_is_reported() {
        let (sender, receiver) = channel();
        let thread = spawn(
            "t",
            64 << 10,
            || panic!("on {}", "purpose"),
            move |error| {
                sender.send(error).unwrap();
            },
        );
        thread.unwrap().join().unwrap();
        let error = receiver.recv().unwrap();
        assert_eq!(error.to_string(), "the thread `t` panicked: on purpose");
        assert_eq!((error.what(), error.message()), ("the thread `t`", "on purpose"));
        let (sender, receiver) = channel::<Panicked>();
        spawn("t", 64 << 10, || (), move |error| drop(sender.send(error))).unwrap().join().unwrap();
        assert!(receiver.recv().is_err(), "no panic");
    }

    #[test]
    fn payloads_of_all_kinds_are_contained() {
        struct PanicOnDrop;
        impl Drop for PanicOnDrop {
            fn drop(&mut self) {
                panic!("in a payload's drop");
            }
        }
        assert_eq!(contained("it", || 7), Ok(7));
        let error = contained("it", || std::panic::panic_any(PanicOnDrop)).unwrap_err();
        assert_eq!(error.to_string(), "it panicked: without a message");
        let error = contained("it", || std::panic::panic_any("plain")).unwrap_err();
        assert_eq!(error.message(), "plain");
    }
}
