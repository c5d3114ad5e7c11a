//! GNU build ids, which linkers write into programs and libraries to identify one build.
//!
//! The id is the note `NT_GNU_BUILD_ID` of the owner `GNU` in a PT_NOTE segment; see elf(5).

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::header::{ET_DYN, ET_EXEC, Header, PT_NOTE};
use super::notes::next_note;

const NT_GNU_BUILD_ID: u32 = 3;

/// Longest id accepted, in bytes. Linkers write 8 to 20 bytes unless told otherwise.
const MAX_ID_BYTES: usize = 64;

/// File offset and size in bytes of each PT_NOTE segment of a program or library, from the first
/// bytes of its file. Empty if the file is of another type, or `start` does not hold all program
/// headers.
pub(crate) fn note_segments(start: &[u8]) -> Vec<(u64, u64)> {
    let Ok(header) = Header::parse(start, &[ET_EXEC, ET_DYN]) else { return Vec::new() };
    let notes = header.program_headers().filter(|header| header.kind == PT_NOTE);
    notes.filter_map(|header| Some((header.offset?, header.filesz))).collect()
}

/// The first build id in a PT_NOTE segment. Each note parsed decrements `left`; at 0, the search
/// ends.
pub(crate) fn build_id<'a>(notes: &'a [u8], left: &mut u32) -> Option<&'a [u8]> {
    let mut at = 0;
    while let Some(rest) = left.checked_sub(1) {
        *left = rest;
        let note = next_note(0, notes, at).ok()??;
        let is_valid_length = (1..=MAX_ID_BYTES).contains(&note.contents.len());
        if (note.name, note.kind) == (b"GNU", NT_GNU_BUILD_ID) && is_valid_length {
            return Some(note.contents);
        }
        at = note.end;
    }
    None
}
