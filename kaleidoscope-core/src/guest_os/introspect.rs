//! The interface to a guest operating system.

use super::GuestFacts;
use crate::memory::GuestMemory;
use crate::registers::VcpuRegisters;
use std::fmt;

/// A part of introspection, announced when it begins, so that callers can show progress or measure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// Finding the kernel and its page tables.
    Locate,
    /// Finding symbols.
    Symbols,
    /// Finding what every workload uses of the kernel image.
    CommonSymbols,
    /// Finding type information.
    Types,
    /// Reading the frame table.
    FrameTable,
    /// Reading the list of tasks.
    Tasks,
    /// Walking processes' page tables.
    UserSpaces,
    /// Attributing the kernel's address space.
    KernelAreas,
    /// Naming files and slab caches.
    Names,
    /// Putting the facts together.
    Facts,
    /// Applying the rules.
    Color,
}

impl Phase {
    /// Name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Locate => "locate kernel",
            Self::Symbols => "symbols",
            Self::CommonSymbols => "common symbols",
            Self::Types => "types",
            Self::FrameTable => "frame table",
            Self::Tasks => "tasks",
            Self::UserSpaces => "user page tables",
            Self::KernelAreas => "kernel areas",
            Self::Names => "files and caches",
            Self::Facts => "facts",
            Self::Color => "colors",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Reads a guest operating system's structures from memory alone.
pub trait Introspect {
    /// Why nothing could be found.
    type Error: std::error::Error;

    /// Gathers facts of every frame. `registers` may be empty. `begin` is told of every stage as it
    /// begins.
    ///
    /// # Errors
    /// When the system is not there, or so damaged that nothing can be said of any frame. Damage to
    /// parts is no error: it is told in [`GuestFacts::notes`], and the frames concerned stay
    /// unknown.
    fn introspect(
        &self,
        memory: &dyn GuestMemory,
        registers: &[VcpuRegisters],
        begin: &mut dyn FnMut(Phase),
    ) -> Result<GuestFacts, Self::Error>;
}
