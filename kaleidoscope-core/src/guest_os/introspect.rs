//! The interface to a guest operating system.

use super::GuestFacts;
use crate::memory::GuestMemory;
use crate::registers::VcpuRegisters;
use std::fmt;

/// A phase of introspection, announced when it begins for progress display and measurement.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Phase {
    /// Finding the kernel and its page tables.
    Locate,
    /// Finding symbols.
    Symbols,
    /// Finding kernel symbols that every workload uses.
    CommonSymbols,
    /// Finding type information.
    Types,
    /// Reading the frame table.
    FrameTable,
    /// Reading the list of tasks.
    Tasks,
    /// Walking processes' page tables.
    UserSpaces,
    /// Attributing the kernel's address space to its areas.
    KernelAreas,
    /// Naming files and slab caches.
    Names,
    /// Putting the facts together.
    Facts,
    /// Applying the rules.
    Color,
}

impl Phase {
    /// Name for display.
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
    /// Why introspection failed altogether.
    type Error: std::error::Error;

    /// Gathers facts about every frame. `registers` may be empty. `begin` is called at the start of
    /// every phase.
    ///
    /// # Errors
    /// If the operating system is not found, or is so damaged that no frame can be classified.
    /// Damage to parts is not an error: it is reported in [`GuestFacts::notes`], and the affected
    /// frames stay unknown.
    fn introspect(
        &self,
        memory: &dyn GuestMemory,
        registers: &[VcpuRegisters],
        begin: &mut dyn FnMut(Phase),
    ) -> Result<GuestFacts, Self::Error>;
}
