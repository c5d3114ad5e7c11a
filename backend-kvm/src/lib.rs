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

#[cfg(not(feature = "uffd"))]
compile_error!("kaleidoscope-kvm needs one of its features: `uffd`, or `machine`, which has it");

mod error;
#[cfg(feature = "guest")]
pub mod guest;
#[cfg(feature = "machine")]
pub mod machine;
#[cfg_attr(
    not(feature = "machine"),
    expect(dead_code, reason = "machines use more of it than sessions do")
)]
pub mod memory;
#[cfg(feature = "machine")]
pub mod state;
#[cfg_attr(
    not(feature = "machine"),
    expect(dead_code, reason = "machines use more of it than sessions do")
)]
mod sys;
pub mod uffd;

pub use error::{Error, ErrorKind};
