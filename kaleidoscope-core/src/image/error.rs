//! Why a file is not a memory image.

use super::elf::ElfError;
use super::layout_file::LayoutFileError;
use super::preset;
use super::source::Unreadable;
use crate::memory::LayoutError;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why a memory image could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file could not be opened or mapped.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The file is of a kind that has no bytes at offsets.
    #[error("{} is {kind}: {advice}", path.display())]
    Special {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to give instead.
        advice: String,
    },
    /// A part of the file could not be read.
    #[error("file offset {offset:#x} cannot be read: {reason}")]
    Unreadable {
        /// Where.
        offset: u64,
        /// The system's reason.
        reason: String,
    },
    /// The file changed while it was open.
    #[error(transparent)]
    Changed(io::Error),
    /// The file is empty.
    #[error("the memory file is empty")]
    Empty,
    /// A raw file is not made of whole frames.
    #[error(
        "a raw memory file must be a multiple of 4096 bytes long; this one has {bytes:#x} bytes, {over} too many. \
         Was it cut, or is it in another format?"
    )]
    NotFrames {
        /// Length of the file.
        bytes: u64,
        /// Bytes past the last whole frame.
        over: u64,
    },
    /// A raw file is so large that its machine left a hole in guest-physical memory.
    #[error(
        "a raw memory file of {bytes:#x} bytes: guests of 2.75 GiB and more have a hole in guest-physical memory that \
         the file does not show. Name the machine ({}), or give a layout file",
        preset::names()
    )]
    LayoutNeeded {
        /// Length of the file.
        bytes: u64,
    },
    /// The layout file does not fit.
    #[error(transparent)]
    LayoutFile(#[from] LayoutFileError),
    /// The RAM regions are not a layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file is no ELF dump of a machine.
    #[error("ELF dump: {0}")]
    Elf(#[from] ElfError),
    /// The file is in a format that is recognized, but must be converted.
    #[error("this is {format}; {advice}")]
    Unsupported {
        /// What the file is.
        format: &'static str,
        /// How to get an image that can be read.
        advice: &'static str,
    },
}

impl From<Unreadable> for ImageError {
    fn from(Unreadable { offset, reason }: Unreadable) -> Self {
        Self::Unreadable { offset, reason }
    }
}
