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
    /// The file is of a type that cannot be read at offsets.
    #[error("{} is {kind}: {advice}", path.display())]
    Special {
        /// The file.
        path: PathBuf,
        /// Its type.
        kind: &'static str,
        /// What to use instead.
        advice: String,
    },
    /// A part of the file could not be read.
    #[error("file offset {offset:#x} cannot be read: {reason}")]
    Unreadable {
        /// File offset in bytes.
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
    /// The length of a raw file is not a multiple of the frame size.
    #[error(
        "a raw memory file must be a multiple of 4096 bytes long; this one has {bytes:#x} bytes, \
         {over} too many. Was it cut, or is it in another format?"
    )]
    NotFrames {
        /// Length of the file in bytes.
        bytes: u64,
        /// Bytes past the last whole frame.
        over: u64,
    },
    /// A raw file is so large that guest-physical memory must have a hole.
    #[error(
        "a raw memory file of {bytes:#x} bytes: guests of 2.75 GiB and more have a hole in \
         guest-physical memory that the file does not show. Name the machine \
         ({}), or give a layout file",
        preset::names()
    )]
    LayoutNeeded {
        /// Length of the file in bytes.
        bytes: u64,
    },
    /// The layout file does not fit.
    #[error(transparent)]
    LayoutFile(#[from] LayoutFileError),
    /// The RAM regions are not a valid layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The file is not an ELF dump of a machine.
    #[error("ELF dump: {0}")]
    Elf(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The name is not the name of a [`Preset`](super::Preset).
    #[error("{name:?} is no known machine; known are {}", preset::names())]
    UnknownPreset {
        /// The name, cut to 40 characters.
        name: String,
    },
    /// The file is in a known format that must be converted.
    #[error("this is {format}; {advice}")]
    Unsupported {
        /// The format.
        format: &'static str,
        /// How to make a readable image of it.
        advice: &'static str,
    },
}

impl From<ElfError> for ImageError {
    fn from(error: ElfError) -> Self {
        Self::Elf(Box::new(error))
    }
}

impl From<Unreadable> for ImageError {
    fn from(Unreadable { offset, reason }: Unreadable) -> Self {
        Self::Unreadable { offset, reason }
    }
}
