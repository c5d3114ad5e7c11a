//! Child processes that do not outlive the command.

use super::registry::{Armed, arm_after};
use super::undo::Undo;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal,
};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

/// Starts a child that is killed when a signal ends the command. It also dies with the thread that
/// started it, even if that is killed.
///
/// # Errors
/// As [`Command::spawn`].
#[expect(clippy::disallowed_methods, reason = "this is the place where children are started")]
pub(crate) fn spawn(command: &mut Command) -> io::Result<(Child, Armed)> {
    let parent = getpid();
    let die_with_parent = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the call above.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
    };
    #[expect(unsafe_code, reason = "no safe call of the standard library runs code in the child")]
    // SAFETY: `pre_exec` requires a closure that is async-signal-safe. `die_with_parent` makes two
    // system calls, and neither allocates nor takes a lock: its errors contain an error number or
    // an `ErrorKind`.
    unsafe {
        command.pre_exec(die_with_parent);
    }
    arm_after(|| {
        let mut child = command.spawn()?;
        // A pidfd, because a PID may be reused after the child is reaped.
        let number = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let handle = number
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|number| pidfd_open(number, PidfdFlags::empty()));
        match handle {
            Ok(handle) => Ok((child, Undo::Kill(Arc::new(handle)))),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    })
}

/// Runs a child to its end, as [`Command::output`] does.
///
/// # Errors
/// As [`Command::output`].
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    let (child, armed) = spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let output = child.wait_with_output();
    armed.disarm();
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let start = || spawn(Command::new("sleep").arg("1000")).unwrap();
        let (mut child, armed) = std::thread::spawn(start).join().unwrap();
        armed.disarm();
        // Without the signal this would take a quarter of an hour.
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn armed_children_are_killed() {
        let (mut child, armed) = spawn(Command::new("sleep").arg("1000")).unwrap();
        drop(armed);
        assert!(!child.wait().unwrap().success());
        let echoed = output(Command::new("echo").arg("x")).unwrap();
        assert_eq!(echoed.stdout, b"x\n");
    }
}
