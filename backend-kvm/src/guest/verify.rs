//! Verification of the guest's memory from outside.

use super::content::{self, FILE, WORDS};
use super::{Plan, ProcessPlan, ReadGuest};
use kaleidoscope_core::addr::{FRAME_BYTES, Gpa};
use std::fmt;

/// A byte of the guest that differs from its expected value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Number of the process whose page it is, or `None` for the file.
    pub process: Option<usize>,
    /// Page number in the process's heap, or in the file.
    pub page: u32,
    /// Guest-physical address of the page.
    pub gpa: Gpa,
    /// Number of the first wrong word of 8 bytes in the page.
    pub word: u32,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, page, gpa, word } = self;
        match process {
            Some(process) => write!(f, "page {page} of process {process}")?,
            None => write!(f, "page {page} of the file")?,
        }
        write!(f, ", at {gpa}: word {word} is wrong")
    }
}

impl std::error::Error for Mismatch {}

/// Checks every byte of the heaps and the file in a paused guest. At most one page of each process
/// may be partly of the next version: the one that the process is writing.
///
/// # Errors
/// The first [`Mismatch`], or any error of `read`.
pub fn verify<E>(plan: &Plan, read: &mut ReadGuest<'_, E>) -> Result<(), E>
where
    E: From<Mismatch>,
{
    let mut page = [0; FRAME_BYTES];
    for (number, gpa) in (0u32..).zip(plan.file()) {
        read(gpa, &mut page)?;
        if let Some(word) = first_difference(&page, &content::page(FILE, number, 0)) {
            return Err(Mismatch { process: None, page: number, gpa, word }.into());
        }
    }
    plan.processes().iter().try_for_each(|process| verify_process(process, read))
}

fn verify_process<E>(process: &ProcessPlan, read: &mut ReadGuest<'_, E>) -> Result<(), E>
where
    E: From<Mismatch>,
{
    let owner = process.number as u64;
    let mut versions = vec![0; process.heap.len() * 4];
    for (n, part) in (0u64..).zip(versions.chunks_mut(FRAME_BYTES)) {
        read(Gpa(process.versions.0 + n * FRAME_BYTES as u64), part)?;
    }
    let versions = versions.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    let mut page = [0; FRAME_BYTES];
    let mut has_unfinished = false;
    for (number, (gpa, version)) in (0u32..).zip(process.heap.iter().zip(versions)) {
        read(*gpa, &mut page)?;
        let Some(word) = first_difference(&page, &content::page(owner, number, version)) else {
            continue;
        };
        let wrong =
            |word| Mismatch { process: Some(process.number), page: number, gpa: *gpa, word };
        // A process writes words in ascending order: new words first, old ones after them.
        let new = content::page(owner, number, version.wrapping_add(1));
        let turn = first_difference(&page, &new).unwrap_or(WORDS) as usize * 8;
        let old = content::page(owner, number, version);
        if has_unfinished || turn == 0 || page.get(turn..) != old.get(turn..) {
            return Err(wrong(word).into());
        }
        has_unfinished = true;
    }
    Ok(())
}

/// Number of the first word in which two pages differ.
fn first_difference(a: &[u8; FRAME_BYTES], b: &[u8; FRAME_BYTES]) -> Option<u32> {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    let word = words.into_iter().position(|(a, b)| a != b)?;
    u32::try_from(word).ok()
}
