//! Threads that serve, and code of others that they call: a panic ends what was served, with an
//! error that its owner sees.
//!
//! A thread that dies leaves a service that looks alive: others wait for what it would have done.
//! So every thread that is started for a service is [started here](spawn), with what is to be told
//! when it panics, and what an embedder gave to be called is [called here](contained) where
//! its panic would leave something half done.

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

    /// What panicked: a thread, or a callback.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What the panic said, if that was text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Does something that may panic, and says so then. `what` names it for the error.
///
/// The caller sees to it that nothing goes on with what was left half done: it ends the service.
///
/// # Errors
/// [`Panicked`] when it panicked.
pub fn contained<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    // Locks are released on the way, without being poisoned (`parking_lot`); what they guard is not
    // used for long: the service ends.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let panicked = Panicked::new(what, &*payload);
        // A payload may panic when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
        panicked
    })
}

/// Starts a thread of a service, with so many bytes of stack. Should it panic, it calls `panicked`
/// before it ends: that has to end the service, and to keep the error for its owner.
///
/// # Errors
/// [`io::Error`] when the system gives no thread.
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
    fn a_thread_s_panic_is_told() {
        let (say, said) = channel();
        let thread = spawn(
            "t",
            64 << 10,
            || panic!("on {}", "purpose"),
            move |error| {
                say.send(error).unwrap();
            },
        );
        thread.unwrap().join().unwrap();
        let error = said.recv().unwrap();
        assert_eq!(error.to_string(), "the thread `t` panicked: on purpose");
        assert_eq!((error.what(), error.message()), ("the thread `t`", "on purpose"));
        let (say, said) = channel::<Panicked>();
        spawn("t", 64 << 10, || (), move |error| drop(say.send(error))).unwrap().join().unwrap();
        assert!(said.recv().is_err(), "nothing to tell");
    }

    #[test]
    fn payloads_of_all_kinds_are_contained() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("in a payload's drop");
            }
        }
        assert_eq!(contained("it", || 7), Ok(7));
        let error = contained("it", || std::panic::panic_any(Bomb)).unwrap_err();
        assert_eq!(error.to_string(), "it panicked: without a message");
        let error = contained("it", || std::panic::panic_any("plain")).unwrap_err();
        assert_eq!(error.message(), "plain");
    }
}
