//! On which processors vCPUs go on after a stop.

use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// The processors that the threads of vCPUs had when they stopped.
///
/// A thread is woken on the processor that it had, unless the scheduler looks for a better one,
/// which Linux does not when all have been busy (`SIS_UTIL`). Where vCPUs are about as many as
/// processors, two may have shared one while somebody else needed the other: they would be woken
/// there together, and one of them stand still for the other's turn of some milliseconds, beside an
/// idle processor.
#[derive(Debug, Default)]
pub(super) struct VcpuAffinity {
    stopped: Vec<Cpu>,
}

#[derive(Debug)]
struct Cpu {
    thread: Pid,
    processor: usize,
    /// Processors that it may use otherwise, when it is kept from some until it goes on.
    allowed: Option<CpuSet>,
}

impl VcpuAffinity {
    /// The calling thread stops.
    pub(super) fn stop(&mut self) {
        let (thread, processor) = (gettid(), sched_getcpu());
        self.stopped.push(Cpu { thread, processor, allowed: None });
    }

    /// All that have stopped will go on, of which the calling thread runs: each of the others that
    /// has its last processor in common with another is kept from theirs until it has gone on,
    /// if there are more. Where that is not permitted, all is as it would be without; who gives a
    /// thread other processors just then gives them in vain.
    pub(super) fn spread(&mut self) {
        let this = gettid();
        let mut taken = vec![sched_getcpu()];
        let mut crowded = Vec::new();
        for place in self.stopped.iter_mut().filter(|place| place.thread != this) {
            if taken.contains(&place.processor) {
                crowded.push(place);
            } else {
                taken.push(place.processor);
            }
        }
        for place in crowded.into_iter().filter(|place| place.allowed.is_none()) {
            let Ok(allowed) = sched_getaffinity(Some(place.thread)) else { continue };
            let mut free = allowed;
            taken.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| free.unset(*cpu));
            if free.count() > 0 && sched_setaffinity(Some(place.thread), &free).is_ok() {
                place.allowed = Some(allowed);
            }
        }
    }

    /// The calling thread goes on, and may use the processors that it might before.
    pub(super) fn go_on(&mut self) {
        let this = gettid();
        while let Some(at) = self.stopped.iter().position(|place| place.thread == this) {
            if let Some(allowed) = self.stopped.swap_remove(at).allowed {
                // It was permitted a moment ago. If it no longer is, the thread has a processor
                // nevertheless.
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

    /// A thread that says who it is, and waits until it is told to end; it returns what it might
    /// use then.
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
        let place = |thread, processor| Cpu { thread, processor, allowed: None };
        let all = allowed();
        let sleepers = [(); 3].map(|()| sleeper());
        let [first, second, third] = sleepers.each_ref().map(|(_, thread, _)| *thread);
        // Not to be moved away from here meanwhile.
        let here = sched_getcpu();
        let mut only = CpuSet::new();
        only.set(here);
        sched_setaffinity(None, &only).unwrap();
        let without = |taken: &[usize]| {
            let rest: Vec<_> = all.iter().copied().filter(|cpu| !taken.contains(cpu)).collect();
            if rest.is_empty() { all.clone() } else { rest }
        };

        // The first was where this one goes on, the second was alone somewhere, the third was where
        // the first was.
        let elsewhere = all.iter().copied().find(|cpu| *cpu != here).unwrap_or(here);
        let stopped = [(gettid(), here), (first, here), (second, elsewhere), (third, here)];
        let stopped = stopped.map(|(thread, processor)| place(thread, processor)).into();
        let mut affinity = VcpuAffinity { stopped };
        affinity.spread();
        let may_use = sleepers.map(|(thread, _, tell)| {
            tell.send(()).unwrap();
            thread.join().unwrap()
        });
        let apart = without(&[here, elsewhere]);
        assert_eq!(may_use, [apart.clone(), all.clone(), apart]);

        // Two processors are enough for two threads. Who goes on may go anywhere again.
        let (thread, crowded, tell) = sleeper();
        let mut set = CpuSet::new();
        all.iter().for_each(|cpu| set.set(*cpu));
        sched_setaffinity(Some(crowded), &set).unwrap();
        let mut affinity = VcpuAffinity { stopped: vec![place(crowded, here)] };
        affinity.spread();
        tell.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), without(&[here]));
        affinity.stop();
        affinity.stopped.iter_mut().for_each(|place| place.allowed = Some(set));
        affinity.go_on();
        assert_eq!(allowed(), all);
        assert!(affinity.stopped.iter().all(|place| place.thread == crowded));
    }
}
