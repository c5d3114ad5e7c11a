//! A running clone: vCPUs, and the threads that handle their faults.

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

/// Stack size of each thread in bytes: small, since a host may run thousands of threads.
const STACK: usize = 256 << 10;

/// Time that fault threads may take to end after the clone has ended.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Handles a clone's faults: an [`Engine`], or a handler under test.
pub trait Handler: Send + Sync {
    /// Body of one fault thread: handles the memory's events until the memory is closed.
    ///
    /// # Errors
    /// The reason why the clone cannot continue; the clone is then stopped.
    fn serve(&self) -> Result<(), Box<dyn Error + Send + Sync>>;
}

impl Handler for Engine {
    fn serve(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(Engine::serve(self)?)
    }
}

/// Workload of the vCPUs.
#[derive(Clone, Debug)]
pub enum Work {
    /// A random program.
    Program(Program),
    /// Replays and checks the touches of a trace. Each runs on its vCPU modulo the number of vCPUs.
    Trace {
        /// The trace.
        trace: Arc<Trace>,
        /// Factor by which the pauses between a vCPU's touches are stretched; 0 for no pauses.
        pace: f64,
    },
}

/// Number of threads of a clone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Threads {
    /// vCPUs; 0 counts as 1.
    pub vcpus: u32,
    /// Threads that handle faults.
    pub fault: u32,
}

impl Default for Threads {
    /// Four vCPUs, two fault threads.
    fn default() -> Self {
        Self { vcpus: 4, fault: 2 }
    }
}

/// A running clone. Starting one takes the same time for any memory size.
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
    /// Starts vCPUs on a memory, and the threads that handle their faults. Every byte read is
    /// compared with `truth`, the parent's memory at the freeze, or with what the vCPU itself
    /// wrote, or with zero in frames that it gave back.
    ///
    /// # Errors
    /// [`io::Error`] when a thread cannot be started.
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
        // From here on, dropping `vm` on an error closes the memory, which ends the threads started
        // so far.
        let vm = Self { memory, start, vcpus, fault_threads, vcpu_ends, fault_ends };
        for _ in 0..fault_threads {
            let (memory, handler) = (Arc::clone(&vm.memory), Arc::clone(&handler));
            let end = fault_end.clone();
            spawn("fault", move || {
                if let Err(error) = handler.serve() {
                    memory.close(error.to_string());
                }
                drop(handler);
                // The receiver is gone if the caller dropped the clone.
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

    /// Waits until all vCPUs have ended, ends the clone, and reports. Takes bounded time: a vCPU's
    /// wait for a frame times out, and fault threads that do not end are reported.
    pub fn join(self) -> Report {
        let mut done = Done::default();
        let mut halts = Vec::new();
        let mut left = self.vcpus;
        // Receiving fails once all threads have sent or panicked.
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

/// The worst result of any vCPU.
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
