//! Clones without a hypervisor: what surrounds a clone engine, with every failure at hand.
//!
//! [`MockMemory`] is a clone's memory, with vCPUs that wait when they touch an empty frame. [`pattern`] makes bytes that say
//! where they belong; [`MockSource`] delivers them. [`FaultySource`], [`FaultyPlacer`] and [`FaultyQueue`] wrap any port and let
//! things go wrong as a [`Script`] says; the script's [`Log`] tells who called what. [`ManualClock`] is set by hand.

pub mod contract;
mod faulty_placer;
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
mod source;
mod vm;
mod waits;

pub use faulty_placer::FaultyPlacer;
pub use faulty_queue::FaultyQueue;
pub use faulty_source::FaultySource;
pub use log::{Call, Entry, Log};
pub use manual_clock::ManualClock;
pub use memory::{MockMemory, VcpuError};
pub use memory_statistics::MemoryStatistics;
pub use parent::{Frozen, MockParent, Writers};
pub use program::{Done, Halt, Program};
pub use queue::MockQueue;
pub use report::{Ended, Misbehaved, Report};
pub use script::{Failure, Script, When};
pub use source::MockSource;
pub use vm::{Handler, MockVm, Threads, Work};
