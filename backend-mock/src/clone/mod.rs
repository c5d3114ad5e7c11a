//! Clones without a hypervisor: what surrounds a clone engine, with every failure at hand.
//!
//! [`MockMemory`] is a clone's memory, with vCPUs that wait when they touch an empty frame. [`pattern`] makes bytes that say
//! where they belong.

mod frame_bits;
mod memory;
mod memory_statistics;
pub mod pattern;
mod queue;
mod waits;

pub use memory::{MemoryOptions, MockMemory, VcpuError};
pub use memory_statistics::MemoryStatistics;
pub use queue::{MockQueue, Removal};
