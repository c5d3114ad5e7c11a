//! A clone that runs: vCPUs, and the threads that answer their faults.

use super::memory::{MockMemory, VcpuError};
use super::program::{Done, Halt, Program, Vcpu};
use super::report::{Ended, Report};
use kaleidoscope_core::clone::Engine;
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::replay::{Touch, Trace};
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Stack of each thread in bytes: none of them goes deep, and a host may have thousands.
const STACK: usize = 256 << 10;

/// How long fault threads may take to end after the clone has.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Whoever answers a clone's faults: an [`Engine`], or a handler to be tested.
pub trait Handler: Send + Sync {
    /// The life of one fault thread: answers what the memory reports until it is closed.
    ///
    /// # Errors
    /// Why the clone cannot go on; it is then stopped.
    fn serve(&self) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl Handler for Engine {
    fn serve(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(Engine::serve(self)?)
    }
}

/// What the vCPUs do.
#[derive(Clone, Debug)]
pub enum Work {
    /// A random program.
    Program(Program),
    /// The touches of a trace, each by its vCPU (modulo their number), each checked.
    Trace {
        /// The trace.
        trace: Arc<Trace>,
        /// How many times as long as in the trace the pauses between a vCPU's touches are; 0 for
        /// none at all.
        pace: f64,
    },
}

/// How many threads a clone has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threads {
    /// vCPUs; 0 counts as 1.
    pub vcpus: u32,
    /// Threads that answer faults.
    pub fault: u32,
}

impl Default for Threads {
    /// Four vCPUs, two fault threads.
    fn default() -> Self {
        Self { vcpus: 4, fault: 2 }
    }
}

/// A clone that runs. Starting one takes the same time whatever the size of its memory.
#[must_use = "the clone ends when this is dropped"]
pub struct MockVm {
    memory: Arc<MockMemory>,
    start: Instant,
    vcpus: u32,
    fault_threads: u32,
    vcpu_ends: Receiver<(u32, Done, Option<Halt>)>,
    fault_ends: Receiver<()>,
}

impl MockVm {
    /// Starts vCPUs on a memory and the threads that answer their faults. Every byte read is
    /// compared with `truth`, the parent's memory at the freeze, or with what the vCPU itself
    /// wrote there, or with zero once it gave the frame back.
    ///
    /// # Errors
    /// [`io::Error`] when the system has no more threads.
    pub fn start(
        memory: Arc<MockMemory>,
        handler: Arc<dyn Handler>,
        truth: Arc<dyn GuestMemory>,
        work: Work,
        threads: Threads,
    ) -> io::Result<Self> {
        let (vcpu_end, vcpu_ends) = mpsc::channel();
        let (fault_end, fault_ends) = mpsc::channel();
        let vcpus = threads.vcpus.max(1);
        let start = Instant::now();
        let fault_threads = threads.fault;
        // From here on an early return closes the memory, and so ends the threads that run by then.
        let vm = Self { memory, start, vcpus, fault_threads, vcpu_ends, fault_ends };
        for _ in 0..fault_threads {
            let (memory, handler) = (Arc::clone(&vm.memory), Arc::clone(&handler));
            let end = fault_end.clone();
            spawn("fault", move || {
                if let Err(error) = handler.serve() {
                    memory.close(error.to_string());
                }
                drop(handler);
                // The report may have been given up.
                let _ = end.send(());
            })?;
        }
        for number in 0..vcpus {
            let (memory, truth) = (Arc::clone(&vm.memory), Arc::clone(&truth));
            let (work, end) = (work.clone(), vcpu_end.clone());
            spawn("vcpu", move || {
                let mut vcpu = Vcpu::new(&memory, &*truth);
                let result = match &work {
                    Work::Program(program) => vcpu.run(program, number, vcpus),
                    Work::Trace { trace, pace } => {
                        vcpu.replay(&touches_of(trace, number, vcpus), *pace)
                    }
                };
                let _ = end.send((number, vcpu.done, result.err()));
            })?;
        }
        Ok(vm)
    }

    /// The clone's memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<MockMemory> {
        &self.memory
    }

    /// Waits until all vCPUs have ended, ends the clone, and reports. Takes bounded time: a vCPU
    /// that waits for a frame gives up when the memory's timeout ends, and a fault thread that
    /// does not end is reported.
    pub fn join(self) -> Report {
        let mut done = Done::default();
        let mut halts = Vec::new();
        let mut left = self.vcpus;
        // Ends when the last thread has sent, or is gone.
        while left > 0 {
            let Ok((number, one, halt)) = self.vcpu_ends.recv() else { break };
            left -= 1;
            done.reads += one.reads;
            done.writes += one.writes;
            done.given_back += one.given_back;
            halts.extend(halt.map(|halt| (number, halt)));
        }
        let elapsed = self.start.elapsed();
        self.memory.close("its work is done");
        let mut ended = 0;
        let end = Instant::now() + TIMEOUT;
        while ended < self.fault_threads {
            match self.fault_ends.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(()) => ended += 1,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        Report {
            done,
            ended: outcome(halts, left),
            hanging_fault_threads: self.fault_threads - ended,
            memory: self.memory.statistics(),
            elapsed,
        }
    }
}

impl Drop for MockVm {
    fn drop(&mut self) {
        self.memory.close("it was dropped");
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body).map(drop)
}

fn touches_of(trace: &Trace, number: u32, vcpus: u32) -> Vec<Touch> {
    let of = |touch: &&Touch| u32::from(touch.vcpu) % vcpus == number;
    trace.touches().iter().filter(of).copied().collect()
}

/// The worst that happened to any vCPU.
fn outcome(halts: Vec<(u32, Halt)>, panicked: u32) -> Ended {
    if panicked > 0 {
        return Ended::Panicked;
    }
    let (mut wrong, mut stuck, mut stopped) = (None, None, None);
    for (vcpu, halt) in halts {
        match halt {
            Halt::Vcpu(VcpuError::Closed { reason }) => {
                stopped.get_or_insert(Ended::Stopped { reason });
            }
            Halt::Vcpu(error) => {
                stuck.get_or_insert(Ended::Stuck { vcpu, error });
            }
            halt @ (Halt::Wrong(_) | Halt::Truth(_)) => {
                wrong.get_or_insert(Ended::Wrong { vcpu, halt });
            }
        }
    }
    wrong.or(stuck).or(stopped).unwrap_or(Ended::Completed)
}

impl std::fmt::Debug for MockVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MockVm").field("memory", &self.memory).finish_non_exhaustive()
    }
}
