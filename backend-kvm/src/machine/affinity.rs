//! CPU affinity of vCPU threads when they resume after a stop.

use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The processors that vCPU threads ran on when they stopped.
///
/// The scheduler wakes a thread on its previous processor unless it searches for an idle one, and
/// Linux skips that search when all processors were busy recently (`SIS_UTIL`). With about as many
/// vCPUs as processors, two vCPUs may have last run on the same processor. Both would then be woken
/// there, and one would wait for the other's time slice of some milliseconds beside an idle
/// processor.
#[derive(Debug, Default)]
pub(super) struct VcpuAffinity {
    stopped: Vec<StoppedThread>,
}

#[derive(Debug)]
struct StoppedThread {
    thread: Pid,
    processor: usize,
    /// The thread's own affinity mask, while the thread is kept off some processors until it
    /// resumes.
    allowed: Option<CpuSet>,
}

impl VcpuAffinity {
    /// Records that the calling thread stops.
    pub(super) fn stop(&mut self) {
        let (thread, processor) = (gettid(), sched_getcpu());
        self.stopped.push(StoppedThread { thread, processor, allowed: None });
    }

    /// Prepares all stopped threads to resume; the calling thread is one of them and runs. A thread
    /// whose last processor is also that of another thread is kept off all those processors until
    /// it resumes, if its affinity mask allows others. Without permission to do so, nothing
    /// changes. A change that another process makes to the thread's affinity meanwhile is lost.
    pub(super) fn spread(&mut self) {
        let this = gettid();
        let mut taken = vec![sched_getcpu()];
        let mut crowded = Vec::new();
        for stopped in self.stopped.iter_mut().filter(|stopped| stopped.thread != this) {
            if taken.contains(&stopped.processor) {
                crowded.push(stopped);
            } else {
                taken.push(stopped.processor);
            }
        }
        for stopped in crowded.into_iter().filter(|stopped| stopped.allowed.is_none()) {
            let Ok(allowed) = sched_getaffinity(Some(stopped.thread)) else { continue };
            let mut free = allowed;
            taken.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| free.unset(*cpu));
            if free.count() > 0 && sched_setaffinity(Some(stopped.thread), &free).is_ok() {
                stopped.allowed = Some(allowed);
            }
        }
    }

    /// Records that the calling thread resumes, and restores its affinity mask.
    pub(super) fn resume(&mut self) {
        let this = gettid();
        while let Some(at) = self.stopped.iter().position(|stopped| stopped.thread == this) {
            if let Some(allowed) = self.stopped.swap_remove(at).allowed {
                // Setting this mask was permitted a moment ago. If it no longer is, the thread
                // still has a processor to run on.
                let _ = sched_setaffinity(None, &allowed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::thread::{JoinHandle, spawn};

    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()
    }

    /// Starts a thread that sends its thread id and waits until it is told to end. It returns the
    /// processors that it may use at that time.
    fn sleeper() -> (JoinHandle<Vec<usize>>, Pid, Sender<()>) {
        let (tell, told): (Sender<()>, Receiver<()>) = channel();
        let (say, said) = channel();
        let thread = spawn(move || {
            say.send(gettid()).unwrap();
            told.recv().unwrap();
            allowed()
        });
        (thread, said.recv().unwrap(), tell)
    }

    #[test]
    fn threads_that_shared_a_processor_go_on_apart() {
        let entry = |thread, processor| StoppedThread { thread, processor, allowed: None };
        let all = allowed();
        let sleepers = [(); 3].map(|()| sleeper());
        let [first, second, third] = sleepers.each_ref().map(|(_, thread, _)| *thread);
        // Keeps this thread from being migrated meanwhile.
        let here = sched_getcpu();
        let mut only = CpuSet::new();
        only.set(here);
        sched_setaffinity(None, &only).unwrap();
        let without = |taken: &[usize]| {
            let rest: Vec<_> = all.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
            if rest.is_empty() { all.clone() } else { rest }
        };

        // The first last ran where this thread runs, the second alone elsewhere, the third where
        // the first did.
        let elsewhere = all.iter().copied().find(|cpu| *cpu != here).unwrap_or(here);
        let stopped = [(gettid(), here), (first, here), (second, elsewhere), (third, here)];
        let stopped = stopped.map(|(thread, processor)| entry(thread, processor)).into();
        let mut affinity = VcpuAffinity { stopped };
        affinity.spread();
        let may_use = sleepers.map(|(thread, _, tell)| {
            tell.send(()).unwrap();
            thread.join().unwrap()
        });
        let apart = without(&[here, elsewhere]);
        assert_eq!(may_use, [apart.clone(), all.clone(), apart]);

        // Two processors are enough for two threads. A thread that resumes may use all of them
        // again.
        let (thread, crowded, tell) = sleeper();
        let mut set = CpuSet::new();
        all.iter().for_each(|cpu| set.set(*cpu));
        sched_setaffinity(Some(crowded), &set).unwrap();
        let mut affinity = VcpuAffinity { stopped: vec![entry(crowded, here)] };
        affinity.spread();
        tell.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), without(&[here]));
        affinity.stop();
        affinity.stopped.iter_mut().for_each(|stopped| stopped.allowed = Some(set));
        affinity.resume();
        assert_eq!(allowed(), all);
        assert!(affinity.stopped.iter().all(|stopped| stopped.thread == crowded));
    }
}
