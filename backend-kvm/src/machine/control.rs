//! Whether a machine's vCPUs run.

use super::vcpu::Vcpu;
use crate::error::KvmError;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a vCPU that should stop is reminded: a signal that comes just before it enters the guest is lost.
const REMINDER: Duration = Duration::from_micros(50);

/// How long a vCPU may take to stop. On a busy machine its thread has to get its turn first.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the vCPUs' threads and their machine agree on.
#[derive(Debug)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    /// A look at the state without its lock: the vCPUs are to stop.
    wanted: AtomicBool,
}

#[derive(Debug)]
struct State {
    wish: Wish,
    /// vCPUs that do not run.
    parked: usize,
    /// When the last of them that ran again did.
    went_on: Instant,
    vcpus: usize,
    stopped: Option<Stopped>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    Run,
    Pause,
}

/// Why no vCPU will run again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// The guest ended, or a vCPU broke.
    Ended(String),
    /// The machine is dropped.
    Dropped,
}

impl Control {
    pub(super) fn new(vcpus: usize) -> Self {
        let (wish, went_on) = (Wish::Pause, Instant::now());
        let state = State { wish, parked: vcpus, went_on, vcpus, stopped: None };
        Self { state: Mutex::new(state), changed: Condvar::new(), wanted: AtomicBool::new(true) }
    }

    /// Whether vCPUs are to stop as soon as they can.
    pub(super) fn is_stop_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    pub(super) fn is_running(&self) -> bool {
        self.state.lock().wish == Wish::Run
    }

    pub(super) fn stopped(&self) -> Option<Stopped> {
        self.state.lock().stopped.clone()
    }

    /// A vCPU's thread waits until it is to run; `false` when it never is again. It counts as parked while it waits.
    pub(super) fn wait(&self, is_parked: &mut bool) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.stopped.is_some() {
                return false;
            }
            if state.wish == Wish::Run {
                if *is_parked {
                    state.parked -= 1;
                    state.went_on = Instant::now();
                    *is_parked = false;
                    if state.parked == 0 {
                        self.changed.notify_all();
                    }
                }
                return true;
            }
            if !*is_parked {
                state.parked += 1;
                *is_parked = true;
                self.changed.notify_all();
            }
            self.changed.wait(&mut state);
        }
    }

    /// Has all vCPUs run.
    pub(super) fn go(&self) -> Result<(), KvmError> {
        self.tell(&mut self.state.lock())
    }

    /// Has all vCPUs run, waits until they do, and says when the last of them began. If one of them never does, that is now.
    pub(super) fn go_on(&self) -> Result<Instant, KvmError> {
        let start = Instant::now();
        let mut state = self.state.lock();
        self.tell(&mut state)?;
        // None is woken before the lock is let go of, and that is when this thread sleeps: a vCPU has its processor then. Where this thread is
        // in its way, the scheduler puts it behind another vCPU, and it stands still for that one's turn, some milliseconds.
        while state.parked > 0 {
            let is_expected = state.wish == Wish::Run && state.stopped.is_none();
            if !is_expected || start.elapsed() > PATIENCE {
                return Ok(Instant::now());
            }
            self.changed.wait_for(&mut state, PATIENCE);
        }
        Ok(state.went_on)
    }

    fn tell(&self, state: &mut State) -> Result<(), KvmError> {
        match &state.stopped {
            Some(Stopped::Ended(how)) => return Err(KvmError::Ended(how.clone())),
            Some(Stopped::Dropped) => return Err(KvmError::Ended("it was dropped".into())),
            None => {}
        }
        state.wish = Wish::Run;
        self.wanted.store(false, Ordering::Release);
        self.changed.notify_all();
        Ok(())
    }

    /// Stops all vCPUs, and waits until they have.
    pub(super) fn pause(&self, vcpus: &[Vcpu]) -> Result<(), KvmError> {
        let start = Instant::now();
        let mut state = self.state.lock();
        state.wish = Wish::Pause;
        self.wanted.store(true, Ordering::Release);
        while state.parked < state.vcpus {
            if let Some(Stopped::Ended(how)) = &state.stopped {
                return Err(KvmError::Ended(how.clone()));
            }
            if start.elapsed() > PATIENCE {
                return Err(KvmError::Stuck(PATIENCE.as_millis()));
            }
            vcpus.iter().for_each(Vcpu::kick);
            self.changed.wait_for(&mut state, REMINDER);
        }
        Ok(())
    }

    /// No vCPU is to run again.
    pub(super) fn end(&self, why: Stopped) {
        self.end_locked(&mut self.state.lock(), why);
    }

    /// The guest has ended, which is told when `last` was called. What `last` does may break a vCPU; that is not the reason then.
    pub(super) fn end_after(&self, last: &dyn Fn(), how: String) {
        let mut state = self.state.lock();
        last();
        self.end_locked(&mut state, Stopped::Ended(how));
    }

    fn end_locked(&self, state: &mut State, why: Stopped) {
        state.stopped.get_or_insert(why);
        self.wanted.store(true, Ordering::Release);
        self.changed.notify_all();
    }
}
