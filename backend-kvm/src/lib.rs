//! Clones of running KVM guests.
//!
//! A [`Machine`](machine::Machine) is snapshotted in the time that saving its vCPUs takes, and goes on
//! running; from what the freeze leaves ([`Snapshot`](machine::Snapshot)) any number of clones
//! start at once, each of which shares what it reads and owns what it writes.
//!
//! ```no_run
//! use kaleidoscope_core::memory::MemoryLayout;
//! use kaleidoscope_kvm::machine::{Host, Machine, NoDevices};
//! use std::sync::Arc;
//!
//! let host = Host::open()?;
//! let mut parent = Machine::new(&host, MemoryLayout::contiguous(64 << 20)?, 1, Arc::new(NoDevices))?;
//! // Load a guest: `write` its memory, `set_registers` of its vCPUs.
//! parent.resume()?;
//! let snapshot = parent.freeze()?;
//! let mut clone = Machine::clone_of(&host, &snapshot, Arc::new(NoDevices))?;
//! clone.resume()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("KVM guests are supported on Linux, on x86-64");

mod error;
#[cfg(feature = "guest")]
pub mod guest;
pub mod machine;
pub mod memory;
pub mod state;
mod sys;
pub mod uffd;

pub use error::KvmError;
