//! Standard output and standard error, which may be closed, full, or read by a program that ends.
//!
//! All that the command prints goes through here; Clippy refuses `println!` and `eprintln!`, which
//! panic. A result that cannot be written is an error, unless its reader has had enough (`| head`).
//! Messages beside results are dropped if standard error cannot be written.

use crate::failure::Failure;
use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Lines that wait for a standard error that takes none; further ones are dropped.
const WAITING: usize = 256;

/// Whether a file that the command writes is standard output itself (`-o /dev/stdout`).
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Prints a result. A reader that went away is not a failure.
///
/// The result goes to standard error where [standard output is a file](take_stdout) of the
/// command's.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    if is_stdout_taken() {
        let _ = io::stderr().lock().write_all(text.as_bytes());
        return Ok(());
    }
    let mut out = io::stdout().lock();
    printed(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Prints a result and ends its line.
pub(crate) fn print_line(text: impl Display) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// What an attempt to print comes to.
fn printed(done: io::Result<()>) -> Result<(), Failure> {
    match done {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::io(format_args!("cannot write the result: {error}"), &error))
        }
        _ => Ok(()),
    }
}

/// Says something beside the results, on a line.
pub(crate) fn say(text: impl Display) {
    // In one write, so that lines of several threads stay whole.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// Leaves standard output to a file that the command writes.
pub(crate) fn take_stdout() {
    IS_TAKEN.store(true, Ordering::Relaxed);
}

/// Whether standard output is such a file.
pub(crate) fn is_stdout_taken() -> bool {
    IS_TAKEN.load(Ordering::Relaxed)
}

/// Shows what clap has to say: help and versions are results, complaints are not.
pub(crate) fn show_usage(error: &clap::Error) -> Result<(), Failure> {
    let shown = error.print();
    if error.use_stderr() {
        return Ok(());
    }
    printed(shown.and_then(|()| io::stdout().lock().flush()))
}

/// Says things for threads that may not wait: where standard error takes nothing, because a pipe is
/// full and not read, lines are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Sayer(SyncSender<String>);

impl Sayer {
    /// Starts the thread that waits in their place. It ends with the process, or with the last
    /// clone.
    pub(crate) fn start() -> Result<Self, Failure> {
        let (lines, waiting) = sync_channel::<String>(WAITING);
        let write = move || waiting.into_iter().for_each(say);
        let thread = std::thread::Builder::new().name("messages".to_owned()).spawn(write);
        thread.map_err(|e| Failure::new(format_args!("the system gives no thread: {e}")))?;
        Ok(Self(lines))
    }

    /// Says something on a line, or not.
    pub(crate) fn say(&self, text: impl Display) {
        let _ = self.0.try_send(text.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_disks_are_failures() {
        let error = |kind| printed(Err(io::Error::from(kind)));
        assert!(printed(Ok(())).is_ok());
        assert!(error(ErrorKind::BrokenPipe).is_ok());
        let full = error(ErrorKind::StorageFull).unwrap_err().to_string();
        assert!(full.contains("cannot write the result"), "{full}");
    }

    #[test]
    fn a_sayer_never_waits() {
        let (lines, _unread) = sync_channel(2);
        let sayer = Sayer(lines);
        (0..10).for_each(|n| sayer.say(n));
    }
}
