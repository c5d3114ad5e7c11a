//! Random damage where the structures are, with values that tend to break parsers.

use crate::target::Target;
use kaleidoscope_core::addr::{FRAME_BYTES, FrameIndex, Gfn, Gpa};
use kaleidoscope_core::color::Color;
use kaleidoscope_core::memory::GuestMemory;
use kaleidoscope_mock::{PatchedMemory, Rng};

/// Frames to damage, with a name.
pub(crate) struct Frames {
    pub(crate) name: &'static str,
    pub(crate) frames: Vec<Gfn>,
}

/// Frames of the guest's structures, as its own coloring finds them.
pub(crate) fn structures(target: &Target<'_>) -> Vec<Frames> {
    let colors = [
        ("frame table", Color::FrameTable),
        ("page tables", Color::PageTable),
        ("read-only data", Color::KernelRodata),
        ("data", Color::KernelData),
        ("per-CPU data", Color::PerCpu),
        ("slabs", Color::Slab),
        ("stacks", Color::KernelStack),
    ];
    let regions =
        ["dentry", "inode", "task_struct", "mnt_cache", "signal_cache", "mm_struct", "kmalloc"];
    let by_color = colors.map(|(name, color)| Frames { name, frames: target.frames_of(color) });
    let by_region = regions.map(|name| Frames { name, frames: target.frames_in(name) });
    let is_note = |gfn: &Gfn| {
        let mut start = [0; 10];
        target.memory.read(gfn.gpa(), &mut start).is_ok() && start == *b"OSRELEASE="
    };
    let note: Vec<Gfn> = target.memory.layout().iter().map(|f| f.1).filter(is_note).collect();
    // Few frames hold these tables, so random frames of the image rarely do.
    let tables = [
        ("kallsyms", &b"0\x001\x002\x003\x004\x005\x006\x007\x00"[..]),
        ("BTF", b"\x9f\xeb\x01\x00\x18\x00\x00\x00"),
    ];
    let image = target.frames_of(Color::KernelRodata);
    let holding = tables
        .map(|(name, pattern)| Frames { name, frames: frames_holding(target, &image, pattern) });
    let all = by_color.into_iter().chain(by_region).chain(holding);
    all.chain([Frames { name: "VMCOREINFO", frames: note }])
        .filter(|p| !p.frames.is_empty())
        .collect()
}

/// The frames of `among` that contain a byte sequence, and their neighbors.
fn frames_holding(target: &Target<'_>, among: &[Gfn], pattern: &[u8]) -> Vec<Gfn> {
    let mut bytes = [0; FRAME_BYTES];
    let mut holds = |gfn: Gfn| {
        target.memory.read(gfn.gpa(), &mut bytes).is_ok()
            && bytes.windows(pattern.len()).any(|window| window == pattern)
    };
    let found = among.iter().copied().filter(|gfn| holds(*gfn));
    found.flat_map(|gfn| (gfn.0.saturating_sub(1)..gfn.0 + 2).map(Gfn)).collect()
}

/// Damages up to 64 words in a group of frames.
pub(crate) fn damage(memory: &mut PatchedMemory<'_>, group: &Frames, rng: &mut Rng) {
    let any_ram = |rng: &mut Rng, memory: &PatchedMemory<'_>| {
        let index = u32::try_from(rng.below(memory.layout().frames().into())).unwrap();
        memory.layout().gfn_of(FrameIndex(index)).unwrap().gpa().0
    };
    for _ in 0..1 << rng.below(7) {
        let gfn = group.frames[rng.index(group.frames.len())];
        let at = Gpa(gfn.gpa().0 + rng.below(512) * 8);
        let mut word = [0; 8];
        if memory.read(at, &mut word).is_err() {
            continue;
        }
        let old = u64::from_le_bytes(word);
        let new = match rng.below(10) {
            0 => 0,
            1 => u64::MAX,
            2 => old ^ (1 << rng.below(64)),
            // A number that is slightly wrong, such as a count, an order or a length.
            3 => old.wrapping_add(rng.below(17)).wrapping_sub(8),
            4 => rng.next_u64() >> rng.below(64),
            5 => u64::MAX << rng.below(64),
            // A page-table entry for this frame itself, or for any frame.
            6 => gfn.gpa().0 | 0x67,
            7 => any_ram(rng, memory) | 0xe7,
            // A word from elsewhere in the same group: a pointer of the right kind to the wrong
            // object.
            8 => {
                let other = group.frames[rng.index(group.frames.len())].gpa().0;
                let _ = memory.read(Gpa(other + rng.below(512) * 8), &mut word);
                u64::from_le_bytes(word)
            }
            // A kernel pointer to a neighboring object.
            _ => (old & !0xfff) | (rng.below(512) * 8),
        };
        memory.write(at, &new.to_le_bytes()).unwrap();
    }
}
