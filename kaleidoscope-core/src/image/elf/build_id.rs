//! GNU build ids: what a linker writes into a program or a library so that one build is told from
//! another.
//!
//! It is the note `NT_GNU_BUILD_ID` of the owner `GNU` in a segment of notes; see elf(5).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::header::{ET_DYN, ET_EXEC, Header, PT_NOTE};
use super::notes::next_note;

const NT_GNU_BUILD_ID: u32 = 3;

/// Longest id accepted, in bytes. Linkers write 8 to 20, or what they are told to.
const MAX_ID_BYTES: usize = 64;

/// File offset and size in bytes of each segment of notes of a program or library, by the first
/// bytes of its file. None where these are something else, or do not hold all program headers.
pub(crate) fn note_segments(start: &[u8]) -> Vec<(u64, u64)> {
    let Ok(header) = Header::parse(start, &[ET_EXEC, ET_DYN]) else { return Vec::new() };
    let notes = header.program_headers().filter(|header| header.kind == PT_NOTE);
    notes.filter_map(|header| Some((header.offset?, header.filesz))).collect()
}

/// The first build id in a segment of notes. Each note that is looked at is taken off `left`; at 0,
/// nothing is found.
pub(crate) fn build_id<'a>(notes: &'a [u8], left: &mut u32) -> Option<&'a [u8]> {
    let mut at = 0;
    while let Some(rest) = left.checked_sub(1) {
        *left = rest;
        let note = next_note(0, notes, at).ok()??;
        let is_length = (1..=MAX_ID_BYTES).contains(&note.contents.len());
        if (note.name, note.kind) == (b"GNU", NT_GNU_BUILD_ID) && is_length {
            return Some(note.contents);
        }
        at = note.end;
    }
    None
}
