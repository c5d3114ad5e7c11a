//! The interface to a guest operating system.

use super::GuestFacts;
use crate::memory::GuestMemory;
use crate::registers::VcpuRegisters;
use std::error::Error;
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

/// Why a guest's operating system could not be read.
#[derive(Debug)]
pub struct IntrospectError {
    kind: IntrospectErrorKind,
    source: Box<dyn Error + Send + Sync>,
}

/// The kinds of [`IntrospectError`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum IntrospectErrorKind {
    /// The memory holds no kernel that runs, or nothing says where its page tables are.
    NotFound,
    /// The memory holds several kernels, and nothing says which of them runs.
    Ambiguous,
    /// The kernel was found; what is needed of its structures is damaged or absent.
    Damaged,
}

impl IntrospectError {
    /// An error of this kind; `source` says what was found and where.
    #[must_use]
    pub fn new(kind: IntrospectErrorKind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { kind, source: source.into() }
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> IntrospectErrorKind {
        self.kind
    }
}

impl fmt::Display for IntrospectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for IntrospectError {
    // The message is that of the source, which is not repeated.
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

/// Reads a guest operating system's structures from memory alone.
pub trait Introspect {
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
    ) -> Result<GuestFacts, IntrospectError>;
}
