//! Reads integers and names of a stream, with the offset at which it is.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::error::{Error, ErrorKind};
use std::io::{self, Read};

/// A stream that knows its offset.
pub(super) struct Reader<'r> {
    stream: &'r mut dyn Read,
    offset: u64,
}

impl<'r> Reader<'r> {
    pub(super) fn new(stream: &'r mut dyn Read) -> Self {
        Self { stream, offset: 0 }
    }

    /// An error of kind [`ErrorKind::InvalidInput`] that names the offset.
    pub(super) fn invalid(&self, what: impl std::fmt::Display) -> Error {
        Error::input(format!("the stream at offset {:#x}: {what}", self.offset))
    }

    /// An error of kind [`ErrorKind::Unsupported`] that names the offset.
    pub(super) fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        let what = format!("the stream at offset {:#x}: {what}", self.offset);
        Error::new(ErrorKind::Unsupported, what)
    }

    fn failed(&self, error: io::Error) -> Error {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return self.invalid("it ends in the middle");
        }
        let what = format!("reading the stream at offset {:#x}", self.offset);
        Error::caused_by(ErrorKind::Refused, what, error)
    }

    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.stream.read_exact(buffer).map_err(|error| self.failed(error))?;
        self.offset = self.offset.saturating_add(buffer.len() as u64);
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Error> {
        self.bytes().map(u8::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Error> {
        self.bytes().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Error> {
        self.bytes().map(u64::from_be_bytes)
    }

    /// A name of `length` bytes, of printable ASCII characters.
    pub(super) fn text(&mut self, length: usize) -> Result<String, Error> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_graphic) {
            return Err(self.invalid("a name that is empty or not printable"));
        }
        String::from_utf8(bytes).map_err(|_| self.invalid("a name that is no text"))
    }

    /// A name behind a byte with its length.
    pub(super) fn name(&mut self) -> Result<String, Error> {
        let length = self.u8()?;
        self.text(usize::from(length))
    }

    /// All that is left, which is at most `limit` bytes.
    pub(super) fn rest(&mut self, limit: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let more = limit.saturating_add(1);
        let read = (&mut *self.stream).take(more).read_to_end(&mut bytes);
        read.map_err(|error| self.failed(error))?;
        if bytes.len() as u64 > limit {
            return Err(self.invalid(format_args!("device state of more than {limit} bytes")));
        }
        Ok(bytes)
    }
}
