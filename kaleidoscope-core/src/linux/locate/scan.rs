//! One pass over memory for signs of kernels.
//!
//! Two places of each page are looked at: its start, where the VMCOREINFO text begins, and its last
//! entry, which in a root table leads to the kernel image. Copies of the text elsewhere in a page,
//! in logs or files, are no signs.

use super::read_note;
use super::roots::Roots;
use crate::addr::{FRAME_BYTES, Gfn, Gpa};
use crate::linux::vmcoreinfo::{SIGNATURE, VmcoreInfo};
use crate::memory::{GuestMemory, RamRegion, data_parts};

/// How many pages that look like VMCOREINFO are tried.
const MAX_NOTES: usize = 64;

/// Bytes read at a time where the memory cannot be borrowed.
const CHUNK_BYTES: usize = 64 * FRAME_BYTES;

/// What a pass over memory finds.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// Every page that starts like VMCOREINFO and parses, by ascending address.
    pub(super) notes: Vec<VmcoreInfo>,
    /// Frames that look like a kernel's root table.
    pub(super) roots: Roots,
}

/// Looks at every page that is stored. A page of zeros is no sign, so holes are not read.
pub(super) fn scan<M: GuestMemory + ?Sized>(memory: &M) -> Signs {
    let mut signs = Signs::default();
    let mut copy = vec![0; CHUNK_BYTES];
    for part in data_parts(memory, 0..memory.layout().frames()) {
        scan_part(memory, &part, &mut copy, &mut signs);
    }
    signs
}

fn scan_part<M>(memory: &M, part: &RamRegion, copy: &mut [u8], signs: &mut Signs)
where
    M: GuestMemory + ?Sized,
{
    let mut gfn = part.start;
    let mut left = usize::try_from(part.frames).unwrap_or(usize::MAX);
    while left > 0 {
        let frames = left.min(CHUNK_BYTES / FRAME_BYTES);
        let bytes = frames.saturating_mul(FRAME_BYTES);
        let Some(copy) = copy.get_mut(..bytes) else { return };
        match memory.slice(gfn.gpa(), bytes) {
            Some(bytes) => scan_pages(memory, gfn, bytes, signs),
            None if memory.read(gfn.gpa(), copy).is_ok() => scan_pages(memory, gfn, copy, signs),
            // The image lacks some of these pages.
            None => {
                for (gfn, page) in (gfn.0..).map(Gfn).zip(copy.chunks_exact_mut(FRAME_BYTES)) {
                    if memory.read(gfn.gpa(), page).is_ok() {
                        scan_pages(memory, gfn, page, signs);
                    }
                }
            }
        }
        // Looking at a byte of a mapped page makes the page count as this process's memory.
        memory.release(gfn.gpa(), bytes as u64);
        gfn = Gfn(gfn.0.saturating_add(frames as u64));
        left = left.saturating_sub(frames);
    }
}

fn scan_pages<M>(memory: &M, first: Gfn, bytes: &[u8], signs: &mut Signs)
where
    M: GuestMemory + ?Sized,
{
    for (gfn, page) in (first.0..).map(Gfn).zip(bytes.chunks_exact(FRAME_BYTES)) {
        if page.starts_with(SIGNATURE) && signs.notes.len() < MAX_NOTES {
            signs.notes.extend(read_note(memory, gfn.gpa()));
        }
        if let Some(last) = page.last_chunk().map(|b| u64::from_le_bytes(*b)) {
            signs.roots.look_at(memory, Gpa(gfn.0 << 12), page, last);
        }
    }
}
