//! Clones without a hypervisor: a mock environment for a clone engine, with failures on demand.
//!
//! * [`MockMemory`] is a clone's memory as userfaultfd presents it, with vCPUs that wait when they
//!   touch an empty frame;
//! * [`MockParent`] is the parent, which keeps writing after the freeze;
//! * [`MockVm`] runs vCPUs, with a random [`Program`] or a trace, on a memory, and verifies every
//!   byte that they read;
//! * [`pattern`] generates bytes that encode where they belong, so that a wrong byte can be
//!   explained;
//! * [`FaultySource`], [`FaultyInstaller`] and [`FaultyQueue`] wrap any port and inject failures as
//!   a [`Script`] says; the script's [`Log`] records all calls with their frames; [`ManualClock`]
//!   advances only on request;
//! * [`contract`] checks the guarantees that every implementation of a port must give.
//!
//! A complete run of a clone whose source delivers every tenth page twice:
//!
//! ```
//! use kaleidoscope_core::clone::{Engine, LocalSource, EngineOptions, EngineParts};
//! use kaleidoscope_core::color::{ColorMap, Frame, KernelIdentity};
//! use kaleidoscope_core::memory::MemoryLayout;
//! use kaleidoscope_core::prefetch::{LocalityOrder, Blind};
//! use kaleidoscope_mock::clone::pattern::Pattern;
//! use kaleidoscope_mock::clone::*;
//! use std::sync::Arc;
//!
//! let layout = MemoryLayout::contiguous(1 << 20)?;
//! let frames = layout.frames();
//! let map = (0..frames).map(|_| Frame::default());
//! let map = ColorMap::new(layout.clone(), KernelIdentity::default(), map, Vec::new())?;
//! let parent = MockParent::new(layout, Pattern::new(42));
//! let snapshot = Arc::new(parent.freeze());
//! let _writers = parent.keep_writing(1, 7)?;
//!
//! let script = Script::new(1).on(Call::Deliver, When::Every(10), Failure::Twice);
//! let source = Arc::new(LocalSource::new(snapshot.clone()));
//! let memory = Arc::new(MockMemory::new(frames)?);
//! let source = Arc::new(FaultySource::new(source, frames, script.clone()));
//! let locality = Arc::new(LocalityOrder::new(map));
//! let policy = Box::new(Blind::aligned(8));
//! let parts = EngineParts::new(locality, policy, source, memory.clone())
//!     .queue(Some(Arc::new(memory.queue())));
//! let engine = Engine::start(parts, EngineOptions::default())?;
//! let work = Work::Program(Program { steps: 200, ..Program::default() });
//! let vm = MockVm::start(memory, Arc::new(engine), snapshot, work, Threads::default())?;
//! let report = vm.join();
//! report.check()?;
//! assert!(report.is_complete(), "{report}\n{}", script.log());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod contract;
mod faulty_installer;
mod faulty_queue;
mod faulty_source;
mod frame_bits;
mod log;
mod manual_clock;
mod memory;
mod memory_statistics;
mod parent;
pub mod pattern;
mod program;
mod queue;
mod report;
mod script;
mod vm;
mod waits;

pub use faulty_installer::FaultyInstaller;
pub use faulty_queue::FaultyQueue;
pub use faulty_source::FaultySource;
pub use log::{Call, Entry, Log};
pub use manual_clock::ManualClock;
pub use memory::{MockMemory, VcpuError};
pub use memory_statistics::MemoryStatistics;
pub use parent::{MockParent, Snapshot, Writers};
pub use program::{Done, Halt, Program};
pub use queue::MockQueue;
pub use report::{Ended, Misbehaved, Report};
pub use script::{Failure, Script, When};
pub use vm::{Handler, MockVm, Threads, Work};
