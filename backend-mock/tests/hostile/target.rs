//! A guest under attack, and the requirements that hold however it is damaged.

use crate::meter::{Cost, measure};
use kaleidoscope_core::addr::{FrameIndex, Gfn};
use kaleidoscope_core::color::{Color, RegionId};
use kaleidoscope_core::coloring::{Coloring, ColoringError, ColoringOptions, color};
use kaleidoscope_core::linux::Linux;
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_core::registers::VcpuRegisters;
use kaleidoscope_mock::linux::MockGuest;
use std::time::Duration;

/// Memory bound stated by `kaleidoscope_core::linux`: bytes per frame, plus a constant.
pub(crate) const BYTES_PER_FRAME: usize = 512;
pub(crate) const SPARE_BYTES: usize = 64 << 20;

/// The kernel image is copied if the memory is not contiguous: at most this many bytes.
const MAX_IMAGE: usize = 256 << 20;

/// A damaged run may take this many times as long as an undamaged one, plus a constant. This
/// detects hangs and is not a benchmark.
const SLOWER: u32 = 20;
const SPARE_TIME: Duration = Duration::from_secs(60);

/// Results of coloring a damaged guest.
pub(crate) struct DamagedResult {
    /// Highest cost of a run.
    pub(crate) cost: Cost,
    /// Notes on missing information, or the error.
    pub(crate) notes: Vec<String>,
}

/// An undamaged guest, and its coloring.
pub(crate) struct Target<'m> {
    pub(crate) name: String,
    pub(crate) memory: &'m dyn GuestMemory,
    pub(crate) registers: Vec<VcpuRegisters>,
    pub(crate) coloring: Coloring,
    cost: Cost,
}

impl<'m> Target<'m> {
    pub(crate) fn new(
        name: &str,
        memory: &'m dyn GuestMemory,
        registers: Vec<VcpuRegisters>,
    ) -> Self {
        let options = ColoringOptions::default().registers(registers);
        let (coloring, cost) =
            measure(name, Duration::from_secs(300), || color(memory, &options).unwrap());
        println!("{name}: undamaged {cost:?}, {} frames", memory.layout().frames());
        Self { name: name.to_owned(), memory, registers: options.registers, coloring, cost }
    }

    pub(crate) fn of(name: &str, guest: &'m MockGuest) -> Self {
        Self::new(name, &guest.memory, guest.registers.clone())
    }

    /// Frames of a color in the undamaged guest.
    pub(crate) fn frames_of(&self, color: Color) -> Vec<Gfn> {
        let frames = self.coloring.map.iter();
        frames.filter(|(_, _, f)| f.color == color).map(|(_, gfn, _)| gfn).collect()
    }

    /// Frames of the regions whose name contains a text.
    pub(crate) fn frames_in(&self, name: &str) -> Vec<Gfn> {
        let map = &self.coloring.map;
        let is_in = |id: RegionId| map.region(id).is_some_and(|r| r.name.contains(name));
        map.iter().filter(|(_, _, f)| f.region.is_some_and(is_in)).map(|(_, gfn, _)| gfn).collect()
    }

    /// Colors the damaged guest with and without registers. Every frame must get a color, or there
    /// must be an error with a message, within the limits on time and memory.
    pub(crate) fn color_damaged(
        &self,
        what: &str,
        damaged: &dyn GuestMemory,
        is_mapped: bool,
    ) -> DamagedResult {
        let frames = damaged.layout().frames();
        let image = if is_mapped { 0 } else { MAX_IMAGE.min(frames as usize * 4096) };
        let max_bytes = SPARE_BYTES + BYTES_PER_FRAME * frames as usize + image;
        let mut outcome =
            DamagedResult { cost: Cost { time: Duration::ZERO, peak: 0 }, notes: Vec::new() };
        for registers in [&self.registers[..], &[]] {
            let what = format!("{}: {what}, {} registers", self.name, registers.len());
            let options = ColoringOptions::default().registers(registers.to_vec());
            let limit = self.cost.time * SLOWER + SPARE_TIME;
            let (result, cost) = measure(&what, limit, || color(damaged, &options));
            assert!(cost.peak <= max_bytes, "{what}: {cost:?}, {max_bytes} allowed");
            match result {
                Ok(coloring) => {
                    check(&what, &coloring, frames);
                    outcome.notes.extend(coloring.notes().iter().map(ToString::to_string));
                }
                Err(ColoringError::Map(error)) => panic!("{what}: {error}"),
                Err(error) => outcome.notes.push(error.to_string()),
            }
            let worst = &mut outcome.cost;
            (worst.time, worst.peak) = (worst.time.max(cost.time), worst.peak.max(cost.peak));
        }
        let _ = Linux::default().inspect(damaged, &self.registers, Gfn(u64::from(frames / 2)));
        outcome
    }
}

/// Requirements on every coloring.
fn check(what: &str, coloring: &Coloring, frames: u32) {
    let map = &coloring.map;
    assert_eq!(
        (map.len(), coloring.facts.frames.len()),
        (frames as usize, frames as usize),
        "{what}"
    );
    let members = map.members();
    for (id, region) in (0..).map(RegionId).zip(map.regions()) {
        assert_eq!(members.of(id).len(), region.frames as usize, "{what}: {}", region.name);
        assert!(!region.name.chars().any(char::is_control), "{what}: {:?}", region.name);
    }
    for process in coloring.processes() {
        assert!(!process.name.chars().any(char::is_control), "{what}: {:?}", process.name);
    }
    for note in coloring.notes() {
        assert!(!note.to_string().is_empty(), "{what}");
    }
    let first = map.layout().gfn_of(FrameIndex(0)).unwrap();
    assert!(coloring.explain(first).is_some(), "{what}");
}

impl Target<'_> {
    /// Reads from the undamaged guest.
    pub(crate) fn memory_read(&self, gfn: Gfn, buf: &mut [u8]) {
        self.memory.read(gfn.gpa(), buf).unwrap();
    }
}
