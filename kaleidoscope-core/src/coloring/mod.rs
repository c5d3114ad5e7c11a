//! Coloring a guest: introspection gathers facts, and rules map facts to colors.

mod rules;
mod trust;

pub use rules::{Rule, Rules};
pub use trust::{Trust, Verdict, trust};

use crate::addr::Gfn;
use crate::color::{ColorMap, Frame, MapError};
use crate::guest_os::{
    FrameFacts, GuestFacts, Introspect, IntrospectError, Note, NoteKind, Phase, Process,
};
use crate::linux::{CommonSymbols, Linux};
use crate::memory::GuestMemory;
use crate::page_tables::PageTables;
use crate::registers::VcpuRegisters;
use crate::setters::setters;
use thiserror::Error;

/// Why a guest could not be colored.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ColoringError {
    /// The guest's kernel, or its page tables, could not be read.
    #[error(transparent)]
    Introspect(#[from] IntrospectError),
    /// Introspection returned inconsistent facts, which is a bug in this library.
    #[error("internal error: {0}")]
    Map(#[from] MapError),
}

/// Inputs besides the guest's memory, and the rules to apply.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ColoringOptions {
    /// The vCPUs' registers; may be empty.
    pub registers: Vec<VcpuRegisters>,
    /// How Linux is read: texts that came with the memory, and symbols that most workloads use.
    pub linux: Linux,
    /// The rules.
    pub rules: Rules,
}

setters!(ColoringOptions {
    registers: Vec<VcpuRegisters>,
    linux: Linux,
    rules: Rules,
});

impl ColoringOptions {
    /// The same with other symbols that most workloads use; see [`Linux::common_symbols`].
    #[must_use]
    pub fn common_symbols(mut self, common_symbols: CommonSymbols) -> Self {
        self.linux = self.linux.common_symbols(common_symbols);
        self
    }
}

/// A colored guest.
#[derive(Clone, Debug)]
pub struct Coloring {
    /// The color map.
    pub map: ColorMap,
    /// The facts that the colors were derived from.
    pub facts: GuestFacts,
    rules: Rules,
}

impl Coloring {
    /// Applies rules to facts.
    ///
    /// # Errors
    /// [`MapError`] when a frame names a region that does not exist or is of another kind.
    pub fn new(facts: GuestFacts, rules: Rules) -> Result<Self, MapError> {
        let frame = |f: &FrameFacts| Frame {
            kind: f.usage.kind(),
            color: rules.color(f),
            region: f.region,
            position: f.position,
            temperature: f.temperature,
        };
        let frames = facts.frames.iter().map(frame);
        let (layout, kernel) = (facts.layout.clone(), facts.kernel.clone());
        let contradictions = facts.notes.iter().filter(|n| n.kind == NoteKind::Contradiction);
        let contradictions = u32::try_from(contradictions.count()).unwrap_or(u32::MAX);
        let map = ColorMap::new(layout, kernel, frames, facts.regions.clone())?
            .with_contradictions(contradictions);
        Ok(Self { map, facts, rules })
    }

    /// Records in the map whether the guest's free frames may be filled with zeros.
    fn judge_free_frames(mut self, memory: &dyn GuestMemory) -> Self {
        // Memory that cannot be read is not trusted.
        if trust(memory, &self.map).is_ok_and(|sample| sample.allows_zeros()) {
            self.map = self.map.with_trusted_free_frames(memory.snapshot_id());
        }
        self
    }

    /// The guest's processes, by process id.
    #[must_use]
    pub fn processes(&self) -> &[Process] {
        &self.facts.processes
    }

    /// What introspection could not read.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.facts.notes
    }

    /// The facts of a frame and every rule that applies to it, the deciding rule first; `None` if
    /// the gfn is not RAM.
    #[must_use]
    pub fn explain(&self, gfn: Gfn) -> Option<(&FrameFacts, Vec<&Rule>)> {
        let facts = self.facts.frame(self.map.layout().index_of(gfn)?)?;
        Some((facts, self.rules.applying(facts).collect()))
    }
}

/// Colors every frame of a guest, and judges by a sample whether its free frames may be filled with
/// zeros ([`ColorMap::has_trusted_free_frames`]).
///
/// # Errors
/// [`ColoringError`] if no kernel is found or no frame can be classified. Damage to parts of the
/// guest's structures is not an error: it is reported in [`Coloring::notes`], and the affected
/// frames are unknown.
pub fn color(
    memory: &dyn GuestMemory,
    options: &ColoringOptions,
) -> Result<Coloring, ColoringError> {
    color_with_progress(memory, options, &mut |_| {})
}

/// Colors the frames of a guest with an unknown operating system from its page tables alone; see
/// `docs/limits.md`.
///
/// # Errors
/// [`ColoringError::Introspect`] if no registers locate page tables.
pub fn color_by_page_tables(
    memory: &dyn GuestMemory,
    options: &ColoringOptions,
) -> Result<Coloring, ColoringError> {
    let facts = PageTables.introspect(memory, &options.registers, &mut |_| {})?;
    Ok(Coloring::new(facts, options.rules.clone())?)
}

/// Like [`color()`], but calls `begin` at the start of every phase.
///
/// # Errors
/// As [`color()`].
pub fn color_with_progress(
    memory: &dyn GuestMemory,
    options: &ColoringOptions,
    begin: &mut dyn FnMut(Phase),
) -> Result<Coloring, ColoringError> {
    let facts = options.linux.introspect(memory, &options.registers, begin)?;
    begin(Phase::Color);
    Ok(Coloring::new(facts, options.rules.clone())?.judge_free_frames(memory))
}
