//! Synthetic guests whose truth is known by construction.
//!
//! [`paging`] builds x86 page tables of every mode. [`linux`] builds a Linux guest in memory, from
//! page tables to kallsyms, BTF and frame table, together with the [truth](linux::Truth) about
//! every frame. Everything is a function of a seed, and written independently of the introspection
//! code that is tested with it. [`clone`] mocks the environment of a clone engine: memory, vCPUs, a
//! parent that keeps writing, and failures on demand.

pub mod clone;
pub mod linux;
pub mod paging;

mod error;
mod patched;
mod ram;
mod rng;

pub use error::MockError;
pub use patched::PatchedMemory;
pub use rng::Rng;
