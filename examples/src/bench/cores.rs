//! CPU pinning of the client's and the server's threads.
//!
//! On a machine with two cores, the scheduler may run client and server on one core or on two. A
//! wake-up costs several times as much in one case as in the other. The threads of both the
//! baseline and the engine are therefore pinned.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the two ends of a connection run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cores {
    /// Both on one core: measures the processor's work per page.
    One,
    /// Each on its own core, if there are two: measures the latency of a page.
    Two,
}

/// The chosen cores. Restores the thread's CPU affinity on drop.
#[derive(Debug)]
pub(super) struct Pinned {
    before: CpuSet,
    client: usize,
    server: usize,
}

impl Pinned {
    /// Chooses cores.
    pub(super) fn new(cores: Cores) -> std::io::Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| before.is_set(*cpu));
        let client = usable.next().unwrap_or(0);
        let server = match cores {
            Cores::One => client,
            Cores::Two => usable.next().unwrap_or(client),
        };
        Ok(Self { before, client, server })
    }

    /// Runs `act` on the server's core. Threads that it starts stay there.
    pub(super) fn server<T>(&self, act: impl FnOnce() -> T) -> std::io::Result<T> {
        pin(self.server)?;
        let result = act();
        pin(self.client)?;
        Ok(result)
    }
}

fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // Cannot fail: this was the affinity before.
        let _ = sched_setaffinity(None, &self.before);
    }
}
