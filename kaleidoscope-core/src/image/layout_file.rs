//! Layout files map parts of a raw memory file to guest-physical memory.
//!
//! ```text
//! # file_offset gpa size
//! 0x0 0x0 0x80000000
//! 0x80000000 0x100000000 0x40000000   # RAM above 4 GiB
//! ```
//! Each line has three hexadecimal numbers, `#` starts a comment, and lines may be in any order.
//! Addresses and sizes are multiples of 4096. Ranges of the file do not overlap, and neither do
//! ranges of memory.
//!
//! A guest's memory may be in several files: RAM, a DIMM, a virtio-mem device. A line that ends
//! with a file name refers to offsets in that file; all other lines refer to the memory file that
//! the layout is given with. Names are relative to the directory of the layout file:
//!
//! ```text
//! 0x0 0x0 0x40000000
//! 0x0 0x100000000 0x20000000 dimm0.bin
//! ```

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::segments::Segment;
use crate::addr::{FRAME_SIZE, GPA_LIMIT, Gpa};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// Maximum number of ranges, as in [`MemoryLayout`](crate::memory::MemoryLayout).
const MAX_RANGES: usize = 4096;

/// Maximum size of a layout file in bytes: room for [`MAX_RANGES`] ranges with long comments.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Why a text is not a layout, or does not match its memory file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LayoutFileError {
    /// The layout file could not be read.
    #[error("reading the layout file: {0}")]
    Io(#[from] io::Error),
    /// The text is longer than any layout needs.
    #[error("the layout file is longer than {MAX_TEXT_BYTES} bytes")]
    TooLong,
    /// There are too many ranges.
    #[error("layout line {line}: more than {MAX_RANGES} ranges")]
    TooManyRanges {
        /// Line number, from 1.
        line: usize,
    },
    /// There are no ranges.
    #[error("the layout names no range of the memory file that it is given with")]
    Empty,
    /// The line does not have three numbers and an optional file name.
    #[error("layout line {line}: expected `0xOFFSET 0xGPA 0xSIZE [FILE]`, found {words} words")]
    Words {
        /// Line number, from 1.
        line: usize,
        /// Words on the line.
        words: usize,
    },
    /// A word is not a hexadecimal number.
    #[error(
        "layout line {line}: {word:?} is not a hexadecimal number with 0x and at most 16 digits"
    )]
    Number {
        /// Line number, from 1.
        line: usize,
        /// The word, shortened.
        word: String,
    },
    /// The guest-physical address or the size is not a multiple of 4096.
    #[error("layout line {line}: address {gpa} and size {bytes:#x} must be multiples of 4096")]
    Unaligned {
        /// Line number, from 1.
        line: usize,
        /// First address of the range.
        gpa: Gpa,
        /// Its size in bytes.
        bytes: u64,
    },
    /// The range is empty, or reaches past the end of the address space.
    #[error("layout line {line}: the range is empty or reaches past the address space")]
    OutOfRange {
        /// Line number, from 1.
        line: usize,
    },
    /// Two ranges overlap in guest-physical memory.
    #[error("layout line {line}: guest-physical address {gpa} is also in line {other}")]
    GpaOverlap {
        /// Line number of the later range, from 1.
        line: usize,
        /// First address of that range.
        gpa: Gpa,
        /// Line number of the other range.
        other: usize,
    },
    /// Two ranges overlap in the file.
    #[error("layout line {line}: file offset {offset:#x} is also in line {other}")]
    FileOverlap {
        /// Line number of the later range, from 1.
        line: usize,
        /// First file offset of that range.
        offset: u64,
        /// Line number of the other range.
        other: usize,
    },
    /// A range lies outside the memory file.
    #[error(
        "layout line {line}: the range ends at file offset {end:#x}, the memory file at {file:#x}"
    )]
    PastEnd {
        /// Line number, from 1.
        line: usize,
        /// One past the last file offset of the range.
        end: u64,
        /// Length of the memory file in bytes.
        file: u64,
    },
}

/// A parsed layout file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutFile {
    /// Ranges of the memory file by ascending address, each with its line number.
    ranges: Vec<(Segment, usize)>,
    /// The same for further files, in the order in which they are first named.
    others: Vec<(PathBuf, Vec<(Segment, usize)>)>,
}

impl LayoutFile {
    /// Reads and parses a layout file.
    ///
    /// # Errors
    /// [`LayoutFileError`]; all parse errors name the line.
    pub fn open(path: &Path) -> Result<Self, LayoutFileError> {
        let mut text = String::new();
        let read =
            File::open(path)?.take(MAX_TEXT_BYTES.saturating_add(1)).read_to_string(&mut text)?;
        if read as u64 > MAX_TEXT_BYTES {
            return Err(LayoutFileError::TooLong);
        }
        let mut layout: Self = text.parse()?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for (name, _) in &mut layout.others {
            *name = folder.join(&*name);
        }
        Ok(layout)
    }

    /// The further files that the layout names, each with its own layout. Their memory is disjoint.
    pub fn files(&self) -> impl Iterator<Item = (&Path, Self)> + '_ {
        self.others.iter().map(|(path, ranges)| {
            (path.as_path(), Self { ranges: ranges.clone(), others: Vec::new() })
        })
    }

    /// The memory file's ranges as segments by ascending address.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        self.ranges.iter().map(|(segment, _)| *segment)
    }

    /// Fails if a range lies outside a file of `file` bytes.
    pub(super) fn check_against(&self, file: u64) -> Result<(), LayoutFileError> {
        match self.ranges.iter().find(|(segment, _)| segment.file_end() > file) {
            Some(&(segment, line)) => {
                Err(LayoutFileError::PastEnd { line, end: segment.file_end(), file })
            }
            None => Ok(()),
        }
    }
}

impl FromStr for LayoutFile {
    type Err = LayoutFileError;

    fn from_str(text: &str) -> Result<Self, LayoutFileError> {
        let mut ranges: Vec<(Segment, usize)> = Vec::new();
        let mut others: Vec<(PathBuf, Vec<(Segment, usize)>)> = Vec::new();
        let mut all: Vec<(Segment, usize)> = Vec::new();
        for (number, text) in (1..).zip(text.lines()) {
            let content = text.split_once('#').map_or(text, |(before, _)| before);
            if content.trim().is_empty() {
                continue;
            }
            if all.len() == MAX_RANGES {
                return Err(LayoutFileError::TooManyRanges { line: number });
            }
            let (segment, file) = parse_range(number, content)?;
            let file = file.map(Path::new);
            all.push((segment, number));
            let known = file.and_then(|name| others.iter_mut().find(|(known, _)| known == name));
            match (file, known) {
                (None, _) => ranges.push((segment, number)),
                (Some(_), Some((_, ranges))) => ranges.push((segment, number)),
                (Some(name), None) => others.push((name.to_path_buf(), vec![(segment, number)])),
            }
        }
        if ranges.is_empty() {
            return Err(LayoutFileError::Empty);
        }
        sort_file(&mut ranges)?;
        others.iter_mut().try_for_each(|(_, ranges)| sort_file(ranges))?;
        all.sort_by_key(|(segment, _)| segment.gpa);
        check_neighbors(
            &all,
            |a, b| a.end() > b.gpa.0,
            |line, segment, other| LayoutFileError::GpaOverlap { line, gpa: segment.gpa, other },
        )?;
        Ok(Self { ranges, others })
    }
}

/// Sorts a file's ranges by address, after checking that they do not overlap in the file.
fn sort_file(ranges: &mut [(Segment, usize)]) -> Result<(), LayoutFileError> {
    ranges.sort_by_key(|(segment, _)| segment.file_offset);
    check_neighbors(
        ranges,
        |a, b| a.file_end() > b.file_offset,
        |line, segment, other| LayoutFileError::FileOverlap {
            line,
            offset: segment.file_offset,
            other,
        },
    )?;
    ranges.sort_by_key(|(segment, _)| segment.gpa);
    Ok(())
}

/// Fails on the first pair of overlapping neighbors.
fn check_neighbors(
    sorted: &[(Segment, usize)],
    overlap: impl Fn(&Segment, &Segment) -> bool,
    error: impl Fn(usize, &Segment, usize) -> LayoutFileError,
) -> Result<(), LayoutFileError> {
    for ((a, other), (b, line)) in sorted.iter().zip(sorted.iter().skip(1)) {
        if overlap(a, b) {
            return Err(error(*line, b, *other));
        }
    }
    Ok(())
}

/// A range, and the file name if the line has one.
fn parse_range(line: usize, content: &str) -> Result<(Segment, Option<&str>), LayoutFileError> {
    let mut rest = content.trim();
    let mut word = || {
        let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        rest = after.trim_start();
        word
    };
    let (offset, gpa, size) = (word(), word(), word());
    // A file name may contain blanks; a fourth number is not a name.
    let file = Some(rest).filter(|name| !name.is_empty());
    if size.is_empty() || file.is_some_and(|name| name.starts_with("0x")) {
        return Err(LayoutFileError::Words { line, words: content.split_whitespace().count() });
    }
    let file_offset = parse_hex(line, offset)?;
    let gpa = Gpa(parse_hex(line, gpa)?);
    let bytes = parse_hex(line, size)?;
    if gpa.offset_in_frame() != 0 || bytes % FRAME_SIZE != 0 {
        return Err(LayoutFileError::Unaligned { line, gpa, bytes });
    }
    let in_space = gpa.checked_add(bytes).is_some_and(|end| end.0 <= GPA_LIMIT);
    if bytes == 0 || !in_space || file_offset.checked_add(bytes).is_none() {
        return Err(LayoutFileError::OutOfRange { line });
    }
    Ok((Segment { gpa, bytes, file_offset }, file))
}

fn parse_hex(line: usize, word: &str) -> Result<u64, LayoutFileError> {
    let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    // `from_str_radix` also accepts a sign, which is not a hexadecimal digit.
    let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
    digits
        .and_then(|d| u64::from_str_radix(d, 16).ok())
        .ok_or_else(|| LayoutFileError::Number { line, word: word.chars().take(40).collect() })
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test that overflows fails")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<LayoutFile, LayoutFileError> {
        text.parse()
    }

    #[test]
    fn reads_comments_and_any_order() {
        let text = "# offset gpa size\n\n0x3000 0x100000000 0x2000 # high\n 0x0\t0x0 0x3000\r\n";
        let layout = parse(text).unwrap();
        let expected = [
            Segment { gpa: Gpa(0), bytes: 0x3000, file_offset: 0 },
            Segment { gpa: Gpa(1 << 32), bytes: 0x2000, file_offset: 0x3000 },
        ];
        assert_eq!(layout.segments().collect::<Vec<_>>(), expected);
        assert!(layout.check_against(0x5000).is_ok());
        let short = layout.check_against(0x4fff).unwrap_err();
        assert!(matches!(short, LayoutFileError::PastEnd { line: 3, end: 0x5000, file: 0x4fff }));
    }

    #[test]
    fn errors_name_the_line() {
        let message = |text| parse(text).unwrap_err().to_string();
        assert!(message("# x\n0x0 0x0\n").contains("line 2: expected"));
        assert!(message("0x0 0x0 0x1000 0x0\n").contains("found 4 words"));
        assert!(message("0x0 0x0 4096\n").contains("line 1: \"4096\""));
        assert!(message("0x0 0x0 0x+10\n").contains("\"0x+10\""));
        assert!(message("0x0 0x0 0x10000000000001000\n").contains("line 1"));
        assert!(message("0x0 0x0 0x0\n").contains("line 1: the range is empty"));
        assert!(message("0x0 0x800 0x1000\n").contains("multiples of 4096"));
        assert!(message("0xfffffffffffff000 0x0 0x1000\n").contains("past the address space"));
        assert!(message("0x0 0x10000000000000 0x1000\n").contains("past the address space"));
        assert!(
            message("0x1000 0x0 0x1000\n0x0 0x5000 0x2000\n")
                .contains("line 1: file offset 0x1000 is also in line 2")
        );
        assert!(
            message("0x0 0x0 0x2000\n0x2000 0x1000 0x1000\n")
                .contains("line 2: guest-physical address 0x1000 is also in line 1")
        );
        assert!(message("# nothing\n").contains("no range"));
        let many: String =
            (0..5000).map(|i| format!("{0:#x} {0:#x} 0x1000\n", i * 0x1000)).collect();
        assert!(message(&many).contains("line 4097: more than 4096 ranges"));
    }

    #[test]
    fn lines_may_name_files() {
        let text = "0x0 0x0 0x3000\n0x0 0x5000 0x1000 my dimm.bin # one\n0x1000 0x4000 0x1000 b\n\
            0x1000 0x6000 0x1000 my dimm.bin\n";
        let layout = parse(text).unwrap();
        assert_eq!(layout.segments().count(), 1);
        let files: Vec<_> = layout.files().map(|(path, file)| (path.to_owned(), file)).collect();
        let segment = |gpa, file_offset| Segment { gpa: Gpa(gpa), bytes: 0x1000, file_offset };
        let of = |at: usize| files[at].1.segments().collect::<Vec<_>>();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].0, Path::new("my dimm.bin"));
        assert_eq!(of(0), [segment(0x5000, 0), segment(0x6000, 0x1000)]);
        assert_eq!((files[1].0.as_path(), of(1)), (Path::new("b"), vec![segment(0x4000, 0x1000)]));
        // Offsets may repeat between files, addresses may not.
        let message = |text| parse(text).unwrap_err().to_string();
        assert!(message("0x0 0x0 0x2000\n0x0 0x1000 0x1000 b\n").contains("address 0x1000"));
        let twice = "0x0 0x0 0x1000\n0x0 0x1000 0x2000 b\n0x1000 0x4000 0x1000 b\n";
        assert!(message(twice).contains("line 3: file offset 0x1000 is also in line 2"));
        assert!(message("0x0 0x0 0x1000 b\n").contains("names no range of the memory file"));
    }

    #[test]
    fn files_are_beside_the_layout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layout.txt");
        std::fs::write(&path, "0x0 0x0 0x1000\n0x0 0x2000 0x1000 b\n").unwrap();
        let layout = LayoutFile::open(&path).unwrap();
        assert_eq!(layout.files().next().unwrap().0, folder.path().join("b"));
    }

    #[test]
    fn long_files_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![b'#'; 1 << 21]).unwrap();
        assert!(matches!(LayoutFile::open(file.path()), Err(LayoutFileError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(0x[0-9a-f]{0,17}|[0-9 \n#x]|\\PC){0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn printed_layouts_are_read_back(
            pieces in prop::collection::vec((0u64..9, 1u64..9, 0u64..9), 1..9),
        ) {
            let (mut gpa, mut offset) = (0, 0);
            let mut segments = Vec::new();
            for (gap, frames, file_gap) in pieces {
                gpa += gap * FRAME_SIZE;
                offset += file_gap;
                let bytes = frames * FRAME_SIZE;
                segments.push(Segment { gpa: Gpa(gpa), bytes, file_offset: offset });
                gpa += frames * FRAME_SIZE;
                offset += frames * FRAME_SIZE;
            }
            let text: String = segments.iter().rev()
                .map(|s| format!("{:#x} {} {:#x}\n", s.file_offset, s.gpa, s.bytes)).collect();
            prop_assert_eq!(parse(&text).unwrap().segments().collect::<Vec<_>>(), segments);
        }
    }
}
