//! One pass over memory that finds evidence of kernels.
//!
//! Two parts of each page are examined: its start, where a VMCOREINFO text begins, and its last
//! entry, which in a root table leads to the kernel image. Copies of the text at other offsets, in
//! logs or files, are ignored.

use super::read_note;
use super::roots::Roots;
use crate::addr::{FRAME_BYTES, Gfn, Gpa};
use crate::linux::vmcoreinfo::{SIGNATURE, VmcoreInfo};
use crate::memory::{GuestMemory, RamRegion, data_parts};

/// Maximum number of pages that look like VMCOREINFO to try.
const MAX_NOTES: usize = 64;

/// Bytes to read at a time if the memory cannot be borrowed.
const CHUNK_BYTES: usize = 64 * FRAME_BYTES;

/// Results of a pass over memory.
#[derive(Debug, Default)]
pub(super) struct ScanResults {
    /// VMCOREINFO texts at the start of pages, in ascending order of address.
    pub(super) notes: Vec<VmcoreInfo>,
    /// Frames whose contents look like a kernel's root table.
    pub(super) roots: Roots,
}

/// Examines every page that is stored. Holes are not read, since a page of zeros is no evidence.
pub(super) fn scan<M: GuestMemory + ?Sized>(memory: &M) -> ScanResults {
    let mut results = ScanResults::default();
    let mut copy = vec![0; CHUNK_BYTES];
    for part in data_parts(memory, 0..memory.layout().frames()) {
        scan_part(memory, &part, &mut copy, &mut results);
    }
    results
}

fn scan_part<M>(memory: &M, part: &RamRegion, copy: &mut [u8], results: &mut ScanResults)
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
            Some(bytes) => scan_pages(memory, gfn, bytes, results),
            None if memory.read(gfn.gpa(), copy).is_ok() => scan_pages(memory, gfn, copy, results),
            // The image lacks some of these pages.
            None => {
                for (gfn, page) in (gfn.0..).map(Gfn).zip(copy.chunks_exact_mut(FRAME_BYTES)) {
                    if memory.read(gfn.gpa(), page).is_ok() {
                        scan_pages(memory, gfn, page, results);
                    }
                }
            }
        }
        // Reading a mapped page makes it resident in this process, so release it.
        memory.release(gfn.gpa(), bytes as u64);
        gfn = Gfn(gfn.0.saturating_add(frames as u64));
        left = left.saturating_sub(frames);
    }
}

fn scan_pages<M>(memory: &M, first: Gfn, bytes: &[u8], results: &mut ScanResults)
where
    M: GuestMemory + ?Sized,
{
    for (gfn, page) in (first.0..).map(Gfn).zip(bytes.chunks_exact(FRAME_BYTES)) {
        if page.starts_with(SIGNATURE) && results.notes.len() < MAX_NOTES {
            results.notes.extend(read_note(memory, gfn.gpa()));
        }
        if let Some(last) = page.last_chunk().map(|b| u64::from_le_bytes(*b)) {
            results.roots.examine(memory, Gpa(gfn.0 << 12), page, last);
        }
    }
}
