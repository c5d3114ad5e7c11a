//! Whether a machine's vCPUs run.

use super::affinity::VcpuAffinity;
use super::vcpu::Vcpu;
use crate::error::KvmError;
use kaleidoscope_core::service::contained;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often a vCPU that should stop is reminded: a signal that comes just before it enters the
/// guest is lost. So often at first, and after [`SOON`] reminders ever less, down to one a
/// millisecond.
const REMINDER: Duration = Duration::from_micros(50);

/// Reminders after which it is something else that keeps a vCPU, or its thread has no processor.
const SOON: u32 = 64;

/// How long a vCPU may take to stop. On a busy machine its thread has to get its turn first.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// The wait after so many reminders.
fn reminder(after: u32) -> Duration {
    let times = 1 + after.saturating_sub(SOON).min(19);
    REMINDER.saturating_mul(times)
}

/// What the vCPUs' threads and their machine agree on.
#[derive(Debug)]
pub(super) struct RunState {
    state: Mutex<State>,
    /// For vCPUs: they are to do something else.
    told: Condvar,
    /// For who tells them: they do something else.
    done: Condvar,
    /// A look at the state without its lock: the vCPUs are to stop.
    wanted: AtomicBool,
}

struct State {
    wish: Wish,
    /// vCPUs that do not run.
    parked: usize,
    /// When the first of them stopped.
    stopped_at: Instant,
    /// When the last of them that ran again did.
    went_on: Instant,
    vcpus: usize,
    /// Where they were.
    affinity: VcpuAffinity,
    stopped: Option<Stopped>,
    /// What is to be done when all have stopped.
    work: Option<Box<dyn FnOnce() + Send>>,
    /// Whether that is being done.
    is_working: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { wish, parked, stopped, .. } = self;
        write!(f, "{wish:?}, {parked} parked, {stopped:?}")
    }
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

impl RunState {
    pub(super) fn new(vcpus: usize) -> Self {
        let now = Instant::now();
        let state = State {
            wish: Wish::Pause,
            parked: vcpus,
            stopped_at: now,
            went_on: now,
            vcpus,
            affinity: VcpuAffinity::default(),
            stopped: None,
            work: None,
            is_working: false,
        };
        let (told, done) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::new(state), told, done, wanted: AtomicBool::new(true) }
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

    /// A vCPU's thread waits until it is to run; `false` when it never is again. It counts as
    /// parked while it waits. The last one to stop does what is to be done.
    pub(super) fn wait(&self, is_parked: &mut bool) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.stopped.is_some() {
                return false;
            }
            if state.wish == Wish::Run {
                if *is_parked {
                    state.parked -= 1;
                    state.affinity.go_on();
                    state.went_on = Instant::now();
                    *is_parked = false;
                    if state.parked == 0 {
                        self.done.notify_all();
                    }
                }
                return true;
            }
            if !*is_parked {
                if state.parked == 0 {
                    state.stopped_at = Instant::now();
                }
                state.parked += 1;
                state.affinity.stop();
                *is_parked = true;
                self.done.notify_all();
            }
            if state.parked == state.vcpus
                && let Some(work) = state.work.take()
            {
                state.is_working = true;
                // Devices are the embedder's code. What was half done is not known.
                let work = || contained("what was to be done while it stood still", work);
                if let Err(error) = MutexGuard::unlocked(&mut state, work) {
                    state.stopped.get_or_insert(Stopped::Ended(error.to_string()));
                }
                state.is_working = false;
                // Who waits for it would only be in the way of the others, which need a processor
                // now.
                state.wish = Wish::Run;
                self.wanted.store(state.stopped.is_some(), Ordering::Release);
                if state.stopped.is_some() {
                    self.done.notify_all();
                } else {
                    state.affinity.spread();
                }
                self.told.notify_all();
            } else {
                self.told.wait(&mut state);
            }
        }
    }

    /// Has all vCPUs run.
    pub(super) fn go(&self) -> Result<(), KvmError> {
        let mut state = self.state.lock();
        match &state.stopped {
            Some(Stopped::Ended(how)) => return Err(KvmError::Ended(how.clone())),
            Some(Stopped::Dropped) => return Err(KvmError::Ended("it was dropped".into())),
            None => {}
        }
        state.wish = Wish::Run;
        self.wanted.store(false, Ordering::Release);
        self.told.notify_all();
        Ok(())
    }

    /// Stops all vCPUs, which run, has something done, and has them go on; returns how long they
    /// stood still, all of them or one.
    ///
    /// The last one to stop does it, on its own thread. So there is one thread less that needs a
    /// processor, and each vCPU finds the one that it had: this thread would have taken one
    /// from them, and the scheduler puts a vCPU that finds none behind another, for that one's turn
    /// of some milliseconds.
    pub(super) fn stop_for<T: Send + 'static>(
        &self,
        vcpus: &[Vcpu],
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), KvmError> {
        let result = Arc::new(Mutex::new(None));
        let place = Arc::clone(&result);
        let start = Instant::now();
        let mut state = self.state.lock();
        state.work = Some(Box::new(move || *place.lock() = Some(work())));
        state.wish = Wish::Pause;
        self.wanted.store(true, Ordering::Release);
        // They may not even have begun to run.
        self.told.notify_all();
        let (mut kicked, mut reminders) = (None, 0);
        while state.work.is_some() {
            let is_late = start.elapsed() > TIMEOUT;
            if is_late || state.stopped.is_some() {
                state.work = None;
                return Err(match &state.stopped {
                    Some(Stopped::Ended(how)) => KvmError::Ended(how.clone()),
                    Some(Stopped::Dropped) => KvmError::Ended("it was dropped".into()),
                    None => KvmError::Stuck(TIMEOUT.as_millis()),
                });
            }
            // Until then they run, even if this thread loses its processor.
            kicked.get_or_insert_with(Instant::now);
            vcpus.iter().for_each(Vcpu::kick);
            self.done.wait_for(&mut state, reminder(reminders));
            reminders += 1;
        }
        // It is being done, or is done. One of them may never go on: then they have stood still
        // until now.
        let is_going_on =
            |state: &State| state.is_working || state.wish == Wish::Run && state.stopped.is_none();
        while state.parked > 0 && is_going_on(&state) && start.elapsed() < 2 * TIMEOUT {
            self.done.wait_for(&mut state, TIMEOUT);
        }
        // One may have stopped before it was kicked, or all long ago.
        let begin = state.stopped_at.max(start).min(kicked.unwrap_or(start));
        let end = if state.parked == 0 { state.went_on } else { Instant::now() };
        let why = match &state.stopped {
            Some(Stopped::Ended(how)) => how.clone(),
            Some(Stopped::Dropped) | None => "its freeze broke off".into(),
        };
        drop(state);
        let result = result.lock().take();
        let result = result.ok_or(KvmError::Ended(why))?;
        Ok((result, end.saturating_duration_since(begin)))
    }

    /// Stops all vCPUs, and waits until they have.
    pub(super) fn pause(&self, vcpus: &[Vcpu]) -> Result<(), KvmError> {
        let (start, mut reminders) = (Instant::now(), 0);
        let mut state = self.state.lock();
        state.wish = Wish::Pause;
        self.wanted.store(true, Ordering::Release);
        while state.parked < state.vcpus {
            if let Some(Stopped::Ended(how)) = &state.stopped {
                return Err(KvmError::Ended(how.clone()));
            }
            if start.elapsed() > TIMEOUT {
                return Err(KvmError::Stuck(TIMEOUT.as_millis()));
            }
            vcpus.iter().for_each(Vcpu::kick);
            self.done.wait_for(&mut state, reminder(reminders));
            reminders += 1;
        }
        Ok(())
    }

    /// No vCPU is to run again.
    pub(super) fn end(&self, why: Stopped) {
        self.end_locked(&mut self.state.lock(), why);
    }

    /// The guest has ended, which is told when `last` was called. What `last` does may break a
    /// vCPU; that is not the reason then.
    pub(super) fn end_after(&self, last: &dyn Fn(), how: String) {
        let mut state = self.state.lock();
        last();
        self.end_locked(&mut state, Stopped::Ended(how));
    }

    fn end_locked(&self, state: &mut State, why: Stopped) {
        state.stopped.get_or_insert(why);
        self.wanted.store(true, Ordering::Release);
        self.told.notify_all();
        self.done.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{JoinHandle, current, spawn, yield_now};

    /// A vCPU's thread, but for the vCPU.
    fn running() -> (Arc<RunState>, JoinHandle<()>) {
        let run_state = Arc::new(RunState::new(1));
        let its = Arc::clone(&run_state);
        let thread = spawn(move || {
            let mut is_parked = true;
            while its.wait(&mut is_parked) {
                while !its.is_stop_wanted() {
                    yield_now();
                }
            }
        });
        run_state.go().unwrap();
        (run_state, thread)
    }

    #[test]
    fn what_is_to_be_done_is_done_by_a_vcpu_s_thread() {
        let (run_state, thread) = running();
        for _ in 0..1000 {
            let (by, _) = run_state.stop_for(&[], || current().id()).unwrap();
            assert_eq!(by, thread.thread().id());
            assert!(run_state.is_running());
        }
        run_state.end(Stopped::Dropped);
        thread.join().unwrap();
        assert!(matches!(run_state.stop_for(&[], || ()), Err(KvmError::Ended(_))));
    }

    #[test]
    fn a_freeze_that_breaks_off_ends_the_machine() {
        let (run_state, thread) = running();
        let stopped = run_state.stop_for(&[], || assert!(current().name().is_some(), "on purpose"));
        assert!(matches!(stopped, Err(KvmError::Ended(_))), "{stopped:?}");
        assert!(
            matches!(run_state.stopped(), Some(Stopped::Ended(how)) if how.contains("panicked: on purpose"))
        );
        thread.join().unwrap();
    }
}
