//! Writes records of the ground truth to a raw disk, bypassing the page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::os::{Backing, Mapping};
use crate::lab::error::{Error, Result};
use crate::lab::truth::{self, BLOCK};

/// Blocks written at a time.
const BUFFER_BLOCKS: usize = 256;

/// A raw disk, written from its start.
#[derive(Debug)]
pub(crate) struct RawDisk {
    disk: File,
    path: PathBuf,
    offset: u64,
    /// A mapping, because direct I/O needs aligned memory.
    buffer: Mapping,
}

impl RawDisk {
    /// Opens the disk and allocates all memory that writing needs.
    ///
    /// # Errors
    /// If the disk cannot be opened or memory is short.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_DIRECT);
        Ok(Self {
            disk: options.open(path).map_err(Error::io("open", path))?,
            path: path.to_owned(),
            offset: 0,
            buffer: locked(BUFFER_BLOCKS * BLOCK)?,
        })
    }

    /// Appends a record.
    ///
    /// # Errors
    /// If the name cannot name a record or the disk is full.
    pub(crate) fn record(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let header = truth::header(name, data.len() as u64)
            .ok_or_else(|| Error::Agent(format!("{name:?} cannot name a record")))?;
        let piece = self.buffer.len();
        std::iter::once(header.as_slice())
            .chain(data.chunks(piece))
            .try_for_each(|piece| self.write(piece))
            .map_err(Error::io("write", &self.path))
    }

    /// Writes at most a full buffer, padded to whole blocks.
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let padded = data.len().next_multiple_of(BLOCK);
        let buffer = self
            .buffer
            .bytes_mut()?
            .get_mut(..padded)
            .ok_or_else(|| io::Error::from(ErrorKind::InvalidInput))?;
        let (filled, padding) = buffer.split_at_mut(data.len());
        filled.copy_from_slice(data);
        padding.fill(0);
        self.disk.write_all_at(buffer, self.offset)?;
        self.offset += padded as u64;
        Ok(())
    }
}

/// Allocates and locks memory now, so that using it later does not change other memory.
///
/// # Errors
/// If memory is short.
pub(crate) fn locked(length: usize) -> Result<Mapping> {
    Mapping::anonymous(length, Backing::Private)
        .and_then(|mapping| mapping.lock().map(|()| mapping))
        .map_err(|error| Error::Agent(format!("{length} bytes for the dump: {error}")))
}
