//! Run state of a machine's vCPUs: running, pausing, paused or ended.

use super::affinity::VcpuAffinity;
use super::vcpu::Vcpu;
use crate::error::{Error, ErrorKind};
use kaleidoscope_core::service::contained;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Interval at which a vCPU that should stop is signaled again: a signal that arrives just before
/// the vCPU enters the guest has no effect. After [`FAST_REMINDERS`] reminders the interval grows,
/// up to a millisecond.
const REMINDER_INTERVAL: Duration = Duration::from_micros(50);

/// Reminders after which something else must delay the vCPU, or its thread has no processor.
const FAST_REMINDERS: u32 = 64;

/// Time that a vCPU may take to stop. On a busy host its thread has to be scheduled first.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// A vCPU did not stop within [`TIMEOUT`].
fn stuck() -> Error {
    let what = format!("a vCPU did not stop within {} ms", TIMEOUT.as_millis());
    Error::new(ErrorKind::Timeout, what)
}

/// The wait after this many reminders.
fn reminder(after: u32) -> Duration {
    let times = 1 + after.saturating_sub(FAST_REMINDERS).min(19);
    REMINDER_INTERVAL.saturating_mul(times)
}

/// State that the vCPUs' threads share with their machine.
#[derive(Debug)]
pub(super) struct RunState {
    state: Mutex<State>,
    /// Wakes vCPU threads: their requested state changed.
    wake: Condvar,
    /// Signaled whenever a vCPU changes state.
    changed: Condvar,
    /// Whether the vCPUs are to stop; readable without the lock.
    is_stop_requested: AtomicBool,
}

struct State {
    request: Request,
    /// Number of vCPUs that are parked, not running.
    parked: usize,
    /// When the first vCPU stopped.
    stopped_at: Instant,
    /// When the last vCPU resumed.
    resumed_at: Instant,
    vcpus: usize,
    /// Processors that the vCPU threads last ran on.
    affinity: VcpuAffinity,
    stopped: Option<Stopped>,
    /// Runs on the last vCPU thread to stop, while all are stopped.
    work: Option<Box<dyn FnOnce() + Send>>,
    /// Whether `work` is running.
    is_working: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { request, parked, stopped, .. } = self;
        write!(f, "{request:?}, {parked} parked, {stopped:?}")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request {
    Run,
    Pause,
}

/// Why no vCPU will run again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Stopped {
    /// The guest ended, or a vCPU failed.
    Ended(String),
    /// The machine is dropped.
    Dropped,
}

impl RunState {
    pub(super) fn new(vcpus: usize) -> Self {
        let now = Instant::now();
        let state = State {
            request: Request::Pause,
            parked: vcpus,
            stopped_at: now,
            resumed_at: now,
            vcpus,
            affinity: VcpuAffinity::default(),
            stopped: None,
            work: None,
            is_working: false,
        };
        let (wake, changed) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::new(state), wake, changed, is_stop_requested: AtomicBool::new(true) }
    }

    /// Whether vCPUs are to stop as soon as possible.
    pub(super) fn is_stop_requested(&self) -> bool {
        self.is_stop_requested.load(Ordering::Acquire)
    }

    pub(super) fn is_running(&self) -> bool {
        self.state.lock().request == Request::Run
    }

    pub(super) fn stopped(&self) -> Option<Stopped> {
        self.state.lock().stopped.clone()
    }

    /// Blocks a vCPU's thread until it is to run; `false` when it never will again. The vCPU counts
    /// as parked while it waits. The last one to stop runs the pending work.
    pub(super) fn wait(&self, is_parked: &mut bool) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.stopped.is_some() {
                return false;
            }
            if state.request == Request::Run {
                if *is_parked {
                    state.parked -= 1;
                    state.affinity.resume();
                    state.resumed_at = Instant::now();
                    *is_parked = false;
                    if state.parked == 0 {
                        self.changed.notify_all();
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
                self.changed.notify_all();
            }
            if state.parked == state.vcpus
                && let Some(work) = state.work.take()
            {
                state.is_working = true;
                // Devices are the embedder's code. After a panic, the state of the machine is
                // unknown.
                let work = || contained("the freeze", work);
                if let Err(error) = MutexGuard::unlocked(&mut state, work) {
                    state.stopped.get_or_insert(Stopped::Ended(error.to_string()));
                }
                state.is_working = false;
                // The waiter in `stop_for` is not notified yet: it would compete with the vCPUs
                // for processors.
                state.request = Request::Run;
                self.is_stop_requested.store(state.stopped.is_some(), Ordering::Release);
                if state.stopped.is_some() {
                    self.changed.notify_all();
                } else {
                    state.affinity.spread();
                }
                self.wake.notify_all();
            } else {
                self.wake.wait(&mut state);
            }
        }
    }

    /// Starts or resumes all vCPUs.
    pub(super) fn resume(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        match &state.stopped {
            Some(Stopped::Ended(how)) => return Err(Error::ended(how)),
            Some(Stopped::Dropped) => return Err(Error::ended("it was dropped")),
            None => {}
        }
        state.request = Request::Run;
        self.is_stop_requested.store(false, Ordering::Release);
        self.wake.notify_all();
        Ok(())
    }

    /// Stops all vCPUs, which must be running, runs `work`, and resumes them. Returns the time for
    /// which at least one vCPU was stopped.
    ///
    /// The last vCPU to stop runs `work` on its own thread. That needs one processor less than
    /// running it on this thread, and each vCPU finds its previous processor free. Otherwise the
    /// scheduler would queue one vCPU behind another for a time slice of some milliseconds.
    pub(super) fn stop_for<T: Send + 'static>(
        &self,
        vcpus: &[Vcpu],
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), Error> {
        let result = Arc::new(Mutex::new(None));
        let place = Arc::clone(&result);
        let start = Instant::now();
        let mut state = self.state.lock();
        state.work = Some(Box::new(move || *place.lock() = Some(work())));
        state.request = Request::Pause;
        self.is_stop_requested.store(true, Ordering::Release);
        // The vCPUs may not even have started to run.
        self.wake.notify_all();
        let (mut kicked, mut reminders) = (None, 0);
        while state.work.is_some() {
            let is_late = start.elapsed() > TIMEOUT;
            if is_late || state.stopped.is_some() {
                state.work = None;
                return Err(match &state.stopped {
                    Some(Stopped::Ended(how)) => Error::ended(how),
                    Some(Stopped::Dropped) => Error::ended("it was dropped"),
                    None => stuck(),
                });
            }
            // The vCPUs run until the first signal, even if this thread is preempted before it.
            kicked.get_or_insert_with(Instant::now);
            vcpus.iter().for_each(Vcpu::kick);
            self.changed.wait_for(&mut state, reminder(reminders));
            reminders += 1;
        }
        // The work is running or done. If a vCPU never resumes, the pause lasts until now.
        let is_resuming = |state: &State| {
            state.is_working || state.request == Request::Run && state.stopped.is_none()
        };
        let deadline = start + 2 * TIMEOUT;
        while state.parked > 0 && is_resuming(&state) {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        // A vCPU may have stopped before the first signal, or all of them earlier.
        let begin = state.stopped_at.max(start).min(kicked.unwrap_or(start));
        let end = if state.parked == 0 { state.resumed_at } else { Instant::now() };
        let why = match &state.stopped {
            Some(Stopped::Ended(how)) => how.clone(),
            Some(Stopped::Dropped) | None => "its freeze was aborted".into(),
        };
        drop(state);
        let result = result.lock().take();
        let result = result.ok_or(Error::ended(why))?;
        Ok((result, end.saturating_duration_since(begin)))
    }

    /// Stops all vCPUs, and waits until all have stopped.
    pub(super) fn pause(&self, vcpus: &[Vcpu]) -> Result<(), Error> {
        let (start, mut reminders) = (Instant::now(), 0);
        let mut state = self.state.lock();
        state.request = Request::Pause;
        self.is_stop_requested.store(true, Ordering::Release);
        while state.parked < state.vcpus {
            if let Some(Stopped::Ended(how)) = &state.stopped {
                return Err(Error::ended(how));
            }
            if start.elapsed() > TIMEOUT {
                return Err(stuck());
            }
            vcpus.iter().for_each(Vcpu::kick);
            self.changed.wait_for(&mut state, reminder(reminders));
            reminders += 1;
        }
        Ok(())
    }

    /// Ends the machine: no vCPU runs again.
    pub(super) fn end(&self, why: Stopped) {
        self.end_locked(&mut self.state.lock(), why);
    }

    /// Ends the machine, with `how` as the reported reason, after calling `last` under the lock. If
    /// `last` makes a vCPU fail, that failure is not reported.
    pub(super) fn end_after(&self, last: &dyn Fn(), how: String) {
        let mut state = self.state.lock();
        last();
        self.end_locked(&mut state, Stopped::Ended(how));
    }

    fn end_locked(&self, state: &mut State, why: Stopped) {
        state.stopped.get_or_insert(why);
        self.is_stop_requested.store(true, Ordering::Release);
        self.wake.notify_all();
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::{JoinHandle, current, spawn, yield_now};

    /// The loop of a vCPU's thread, without the vCPU.
    fn running() -> (Arc<RunState>, JoinHandle<()>) {
        let run_state = Arc::new(RunState::new(1));
        let thread_state = Arc::clone(&run_state);
        let thread = spawn(move || {
            let mut is_parked = true;
            while thread_state.wait(&mut is_parked) {
                while !thread_state.is_stop_requested() {
                    yield_now();
                }
            }
        });
        run_state.resume().unwrap();
        (run_state, thread)
    }

    fn is_ended<T>(result: &Result<T, Error>) -> bool {
        result.as_ref().is_err_and(|error| error.kind() == ErrorKind::Ended)
    }

    #[test]
    fn work_runs_on_a_vcpu_s_thread() {
        let (run_state, thread) = running();
        for _ in 0..1000 {
            let (by, _) = run_state.stop_for(&[], || current().id()).unwrap();
            assert_eq!(by, thread.thread().id());
            assert!(run_state.is_running());
        }
        run_state.end(Stopped::Dropped);
        thread.join().unwrap();
        assert!(is_ended(&run_state.stop_for(&[], || ())));
    }

    #[test]
    fn a_freeze_that_panics_ends_the_machine() {
        let (run_state, thread) = running();
        let stopped = run_state.stop_for(&[], || assert!(current().name().is_some(), "on purpose"));
        assert!(is_ended(&stopped), "{stopped:?}");
        let is_reported = |how: &str| how.contains("panicked: on purpose");
        assert!(matches!(run_state.stopped(), Some(Stopped::Ended(how)) if is_reported(&how)));
        thread.join().unwrap();
    }
}
